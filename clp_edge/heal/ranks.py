"""Several processes that heal one model together and come to what one process comes to.

Every process holds the whole tail. A step's sequences, and the held-back ones, are split over the
processes; gradients and sums of KL are added up, and then each takes the same step and the same
decision. So the result is that of one process with the same sequences in a step, but for the order
in which float32 numbers are added. Processes talk through torch.distributed: gloo on the CPU, NCCL
between GPUs. `torchrun` starts them, and `joined` finds the others.

>>> Ranks(rank=1, count=2).share(torch.arange(5))
tensor([3, 4])
>>> SINGLE.whole(torch.tensor([0.25, 0.75]))
tensor([0.2500, 0.7500])
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clp_edge.errors import ClpEdgeError, UsageError

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: as long as one of them may write calibration text. That
one has died shows at once, by its closed connection."""


class RankLostError(ClpEdgeError):
    """Another process of the run is no longer there; it has said why, if it could."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that heal together, of the default process group; alone: no group
    is needed."""

    rank: int = 0
    count: int = 1
    store: Any = field(default=None, repr=False)
    """what the processes met through (torch.distributed.Store)"""

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, ids: Tensor) -> Tensor:
        """This process's part of ids (n,); empty where there are fewer than processes."""
        return ids.tensor_split(self.count)[self.rank]

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Each gradient becomes its sum over the processes; one that no process has stays None."""
        if self.alone:
            return
        parameters = list(parameters)
        have = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        with _lost():
            dist.all_reduce(have)
            for parameter, anywhere in zip(parameters, have.tolist(), strict=True):
                if anywhere:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its sum over the processes, in place."""
        if self.alone:
            return
        with _lost():
            for tensor in tensors:
                dist.all_reduce(tensor)

    def rows(self, part: Tensor, counts: Sequence[int]) -> Tensor:
        """All processes' parts (counts[rank], ...) one after the other, where this one's lies."""
        if self.alone:
            return part
        whole = part.new_empty((sum(counts), *part.shape[1:]))
        with _lost():
            for rank, some in enumerate(whole.split(list(counts))):
                if rank == self.rank:
                    some.copy_(part)
                dist.broadcast(some, src=rank)
        return whole

    def whole(self, part: Tensor) -> Tensor:
        """Every process's part (..., n of `share`) in their order, along the last dimension: on the
        CPU, the very same bits everywhere, as decisions hang on them."""
        if self.alone:
            return part
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.rank] = part.shape[-1]
        with _lost():
            dist.all_reduce(sizes)
            parts = [part.new_empty((*part.shape[:-1], size)) for size in sizes.tolist()]
            parts[self.rank].copy_(part)
            for rank, one in enumerate(parts):
                dist.broadcast(one, src=rank)
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def level(self, tensors: Iterable[Tensor]) -> None:
        """These tensors become the first process's, in place."""
        if self.alone:
            return
        with _lost():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def told(self, message: Any = None) -> Any:
        """What the first process says (picklable), in every process; the others' is not looked at.

        Processes of one user that were started together: what is unpickled is our own.
        """
        if self.alone:
            return message
        said = [message if self.first else None]
        with _lost():
            dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return said[0]

    def fails_first(self) -> bool:
        """Whether no process has failed before this one; asked by one that fails, once."""
        if self.store is None:
            return True
        try:
            return int(self.store.add("clp-edge/failed", 1)) == 1
        except (RuntimeError, OSError):  # it went with the process that failed
            return False


SINGLE = Ranks()


@contextmanager
def _lost() -> Iterator[None]:
    """A connection that breaks says that a process has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RankLostError(
            "another process of this run has ended", "see what it said, and run it again"
        ) from error


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """Meet the processes that torchrun has started beside this one (it sets the environment).

    On GPUs each takes the one of its local number, which is "cuda" from then on.
    Args: device, "cpu" or "cuda". Raises UsageError where there are fewer GPUs than processes.
    """
    if not dist.is_available():
        raise UsageError("this torch has no torch.distributed", "start it without torchrun")
    backend = "gloo"
    if device.startswith("cuda"):
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} of this machine has no GPU, torch sees "
                f"{torch.cuda.device_count()}",
                "give torchrun as many processes as there are GPUs, or --device cpu",
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    store, rank, count = next(dist.rendezvous("env://", timeout=timedelta(minutes=5)))
    store.set_timeout(PATIENCE)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        yield Ranks(rank, count, store)
    except BaseException:
        if backend == "gloo":  # NCCL would wait for what is under way
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
