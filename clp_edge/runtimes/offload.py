"""How many layers of a GGUF file go to the GPU: what was asked, what fits, and the reason.

llama.cpp counts the head as one layer beside the blocks, so a model of L blocks has L + 1. `auto`
takes what the free memory of the GPU holds: the bytes of the last blocks' tensors as the header
gives them, their share of the KV cache for the open context, and the compute buffers. A build
without a GPU backend, a GPU without room and a load that fails all end on the processor, and the
reason is kept: a row of a table must say where its number was made.

>>> plan_offload(Needs((10, 10), 5, 1), Gpu("CUDA", "a GPU", 10**9, 10**9), "auto").layers
3
>>> plan_offload(Needs((10, 10), 5, 1), NO_BACKEND, "auto").layers
0
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clp_edge.errors import UsageError
from clp_edge.gguf_file.header import read_header

GpuLayers = int | Literal["auto"]
"""How many layers to offload; "auto" is what the free memory holds."""

NO_BACKEND = "this build of llama.cpp has no GPU backend"
NO_DEVICE = "llama.cpp finds no GPU"
# What a GPU's driver takes for a process and a library of kernels before anything is stored.
DRIVER_BYTES = 384 << 20
# Of the free memory: allocations are rounded up, and the desktop needs some too.
USABLE = 0.92
MIB = 2**20
_KV_BYTES = {"f32": 4, "f16": 2}


@dataclass(frozen=True)
class Gpu:
    """What llama.cpp's own build says of the GPUs it would use, all of them together."""

    backend: str
    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Needs:
    """Bytes on the GPU: of each block (weights and its part of the cache), the head, buffers."""

    blocks: tuple[int, ...]
    head: int
    compute: int

    @property
    def layers(self) -> int:
        """As llama.cpp counts: the blocks and the head."""
        return len(self.blocks) + 1

    def bytes_of(self, layers: int) -> int:
        """What offloading the last `layers` takes.

        Releases differ in whether the head or the last block goes first; the dearer counts.
        """
        if layers == 0:
            return 0
        with_head = self.head + sum(self.blocks[len(self.blocks) + 1 - layers :])
        without = sum(self.blocks[max(0, len(self.blocks) - layers) :])
        return max(with_head, without) + self.compute


@dataclass(frozen=True)
class Offload:
    """How many layers to offload, of how many, why, and what to try where that fails to load."""

    layers: int
    of: int
    reason: str
    ladder: tuple[int, ...]
    """the counts to try, the last one 0"""


def parse_gpu_layers(text: str | int) -> GpuLayers:
    """What --gpu-layers takes. Raises UsageError for anything but "auto" and 0, 1, 2, ...

    >>> parse_gpu_layers("12")
    12
    """
    if text == "auto":
        return "auto"
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise UsageError(f"cannot read --gpu-layers {text!r}", "give auto, or a number from 0 on")
    return count


def read_needs(path: Path, *, context: int, kv_type: str, batch: int) -> Needs:
    """From the header alone. Args: context and batch in tokens.

    The compute buffer is llama.cpp's own worst case, a batch whose every token has logits: those,
    the activations of one block, and without flash attention ("f32") the attention scores.
    Raises ClpEdgeError for a damaged file.
    """
    header = read_header(path)
    count = int(header.own("block_count", 0))
    width = int(header.own("embedding_length", 0))

    def of_block(name: str, index: int, default: int) -> int:
        value = header.own(name, default)
        return int(value[index]) if isinstance(value, list) else int(value or default)

    weights = [0] * count
    tables = {}
    for tensor in header.tensors:
        if tensor.name.startswith("blk."):
            index = int(tensor.name.split(".")[1])
            if index < count:
                weights[index] += tensor.bytes
        elif tensor.name in ("output.weight", "token_embd.weight"):
            tables[tensor.name] = tensor
    blocks, heads = [], 1
    for index, size in enumerate(weights):
        heads = of_block("attention.head_count", index, 1)
        kv_heads = of_block("attention.head_count_kv", index, heads)
        length = width // heads if heads else 0
        key = int(header.own("attention.key_length", 0) or length)
        value = int(header.own("attention.value_length", 0) or length)
        blocks.append(size + context * kv_heads * (key + value) * _KV_BYTES[kv_type])
    head = tables.get("output.weight") or tables.get("token_embd.weight")
    vocabulary = head.elements // width if head is not None and width else 0
    feed = header.own("feed_forward_length", 0)
    inner = max(feed) if isinstance(feed, list) else int(feed or 4 * width)
    scores = heads * context if kv_type == "f32" else 0
    compute = 4 * batch * (vocabulary + 8 * width + 3 * inner + scores)
    return Needs(tuple(blocks), head.bytes if head is not None else 0, compute)


def plan_offload(needs: Needs, gpu: Gpu | str, asked: GpuLayers, *, share: float = 1.0) -> Offload:
    """What to offload. Args: gpu, or the reason why there is none; share, the part of its free
    memory that this file may take (others are to be opened beside it)."""
    of = needs.layers
    if asked == 0:
        return Offload(0, of, "--gpu-layers 0", (0,))
    if isinstance(gpu, str):
        return Offload(0, of, gpu, (0,))
    if asked != "auto":
        count = min(asked, of)
        return Offload(count, of, f"--gpu-layers {asked}", (count, 0))
    room = int((gpu.free_bytes * USABLE - DRIVER_BYTES) * share)
    fits = next((n for n in range(of, 0, -1) if needs.bytes_of(n) <= room), 0)
    free = f"{gpu.free_bytes / MIB:,.0f} MiB of {gpu.name} are free"
    part = "" if share >= 1.0 else f", and {share:.0%} of it is for this file"
    wants = f"all {of} layers need {needs.bytes_of(of) / MIB:,.0f} MiB"
    steps = (fits, fits // 2, 0) if fits > 1 else (fits, 0)
    return Offload(fits, of, f"{free}{part}; {wants}", tuple(dict.fromkeys(steps)))
