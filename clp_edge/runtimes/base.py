"""What every runtime answers, in one shape: the facts of an artifact, and a session with it.

A session lives in a child process (see `process.py`), because a runtime may abort the process it
runs in. Ids are token ids; times are seconds unless the name says otherwise.

>>> Timing(prompt=512, generate=0, depth=0, prefill_s=2.0, ttft_ms=2001.0, decode_s=0.0).prefill_tps
256.0
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class ArtifactInfo:
    """What a runtime says about the file it opened."""

    runtime: str
    """Its name: "llama.cpp", "torch"."""
    runtime_version: str
    backend: str
    """Where it computes: "CPU", "CUDA", ..."""
    architecture: str
    blocks: int
    context_length: int
    """The longest sequence the model was made for, in tokens (not the context that is open)."""
    vocabulary: int
    load_ms: float
    """From the file's name to a context that can take its first token."""
    bytes: int
    """The size of the file, or of the folder's weight files."""
    gpu_layers: int | None = None
    """How many layers llama.cpp computes on the GPU, the head counted as one; None elsewhere."""
    backend_reason: str = ""
    """Why it computes there, such as what the GPU's memory holds; empty where none was chosen."""

    @property
    def where(self) -> str:
        """Such as "CPU", or "CUDA (24 of 31 layers)"."""
        if not self.gpu_layers:
            return self.backend
        return f"{self.backend} ({self.gpu_layers} of {self.blocks + 1} layers)"


@dataclass(frozen=True)
class Timing:
    """One timed run, batch 1: `prompt` tokens at once, then `generate` tokens one by one.

    Both parts start from a context that already holds `depth` tokens, as llama-bench's tests do.
    """

    prompt: int
    generate: int
    depth: int
    prefill_s: float
    ttft_ms: float
    """Prefill, then the first new token chosen from its logits; NaN without a prompt."""
    decode_s: float
    token_ms: tuple[float, ...] = ()
    """Of each generated token, in order; empty where the runtime was not asked one by one."""

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens per second; NaN where no prompt was timed."""
        return self.prompt / self.prefill_s if self.prompt and self.prefill_s > 0 else math.nan

    @property
    def decode_tps(self) -> float:
        """Generated tokens per second; NaN where none was timed."""
        return self.generate / self.decode_s if self.generate and self.decode_s > 0 else math.nan


def each_ms(begin: float, ends: Sequence[float]) -> tuple[float, ...]:
    """Milliseconds of each step, from the clock's readings in seconds.

    >>> each_ms(1.0, [1.5, 1.75])
    (500.0, 250.0)
    """
    starts = [begin, *ends[:-1]]
    return tuple(1e3 * (end - start) for start, end in zip(starts, ends, strict=True))


class Session(Protocol):
    """An open artifact. Every method raises RuntimeDiedError when the runtime dies of it."""

    @property
    def info(self) -> ArtifactInfo: ...

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """The ids of a text; `add_special` adds BOS/EOS by the file's own rule."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens written out."""
        ...

    def end_tokens(self) -> frozenset[int]:
        """Every id at which the runtime itself ends a generation."""
        ...

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Every position's logits of one fresh sequence: (tokens, vocabulary) float32."""
        ...

    def iter_logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        """The same, in parts of at most about 256 MB, in order."""
        ...

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, *, stop: Collection[int] = ()
    ) -> list[int]:
        """Greedy continuation; ends at `stop` or the file's end tokens, which are not returned."""
        ...

    def score(
        self, context: Sequence[int], choices: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """(sum of log-probabilities in nats, whether greedy decoding would write it) of each choice
        after the same context, which the runtime computes once where it can."""
        ...

    def time_once(self, *, prompt: int, generate: int, depth: int = 0, seed: int = 0) -> Timing: ...

    def peak_rss_mib(self) -> float:
        """The runtime process's largest resident set so far, MiB; pages of a mapped file count
        while they are resident."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
