"""onnxruntime-genai inside the child process: a folder with genai_config.json and its graph.

The generator keeps the KV cache and hands out the logits of every position that was fed, so one
object answers all of a Session's calls. Timed runs follow llama-bench: random token ids, one
sequence, no sampling. Only `child.py` imports this module to run it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clp_edge.errors import MissingDependencyError, UsageError
from clp_edge.runtimes.base import ArtifactInfo, Timing, each_ms
from clp_edge.runtimes.memory import peak_rss_mib
from clp_edge.runtimes.scoring import Score, score_by_logits

PIP_LINE = "pip install 'clp-edge[onnx]'"
CONFIG = "genai_config.json"
_PART_BYTES = 256 * 1024 * 1024
# What makes a greedy search greedy, whatever the folder's own settings are.
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


def load_library() -> ModuleType:
    """Import onnxruntime_genai, with its telemetry off."""
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime-genai is not installed ({error})", PIP_LINE
        ) from error
    except (OSError, RuntimeError) as error:  # a shared library does not load here
        raise MissingDependencyError(
            f"onnxruntime-genai does not load ({error})", f"{PIP_LINE} --force-reinstall"
        ) from error
    # The Linux wheels send nothing; on Windows events are on unless this is called.
    if hasattr(onnxruntime_genai, "disable_telemetry_events"):
        onnxruntime_genai.disable_telemetry_events()
    return onnxruntime_genai


def version_of(library: ModuleType) -> str:
    """The versions of onnxruntime-genai and of the ONNX Runtime below it."""
    import onnxruntime

    return f"onnxruntime-genai {library.__version__} (onnxruntime {onnxruntime.__version__})"


def describe_library() -> str:
    """ "version, backend", after the library was really loaded."""
    library = load_library()
    backend = "CUDA" if library.is_cuda_available() else "CPU"
    return f"{version_of(library)}, backend {backend}"


class GenaiEngine:
    """An onnxruntime-genai folder, open: answers a Session's calls in the child.

    The cache has the type that the graph was built with, so `kv_type` chooses only how threads
    wait: "f32" is for exact comparison on a busy machine, where spinning threads crawl.
    """

    def __init__(self, path: str, threads: int, context: int, kv_type: str, batch: int) -> None:
        self.library: Any = load_library()
        self.folder = Path(path)
        said = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))["model"]
        self.size = min(context, int(said["context_length"]))
        self.vocabulary = int(said["vocab_size"])
        self.part = max(1, min(batch, _PART_BYTES // (4 * self.vocabulary)))
        self.batch = batch
        options: dict[str, Any] = {"intra_op_num_threads": threads}
        if kv_type == "f32":
            options["session.intra_op.allow_spinning"] = "0"
        begin = time.perf_counter()
        config = self.library.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = self.library.Model(config)
        load_ms = (time.perf_counter() - begin) * 1e3
        self.tokenizer = self.library.Tokenizer(self.model)
        self.info = ArtifactInfo(
            runtime="onnxruntime-genai",
            runtime_version=version_of(self.library),
            backend=str(self.model.device_type).upper(),
            architecture=str(said["type"]),
            blocks=int(said["decoder"]["num_hidden_layers"]),
            context_length=int(said["context_length"]),
            vocabulary=self.vocabulary,
            load_ms=load_ms,
            bytes=sum(file.stat().st_size for file in self.folder.glob("*.onnx*")),
        )

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        if not parse_special:
            raise UsageError("onnxruntime-genai always reads special tokens in a text")
        self.tokenizer.update_options(add_special_tokens="true" if add_special else "false")
        return [int(i) for i in self.tokenizer.encode(text)]

    def detokenize(self, ids: Sequence[int]) -> str:
        self._check_ids(ids)
        self.tokenizer.update_options(skip_special_tokens="false")
        return self.tokenizer.decode(np.asarray(ids, dtype=np.int32))

    def end_tokens(self) -> frozenset[int]:
        return frozenset(int(i) for i in self.tokenizer.eos_token_ids)

    def iter_logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        self._need(len(ids))
        self._check_ids(ids)
        generator = self._generator()
        for start in range(0, len(ids), self.part):
            piece = ids[start : start + self.part]
            generator.append_tokens(np.asarray(piece, dtype=np.int32))
            rows = np.asarray(generator.get_output("logits"), dtype=np.float32)[0]
            if len(rows) != len(piece):
                raise RuntimeError(f"the graph gave {len(rows)} rows of logits for {len(piece)}")
            yield rows

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, *, stop: Collection[int] = ()
    ) -> list[int]:
        if not ids:
            raise UsageError("there is nothing to continue", "give at least one token")
        self._need(len(ids) + max_new_tokens)
        self._check_ids(ids)
        ends = self.end_tokens() | frozenset(stop)
        fresh: list[int] = []
        if max_new_tokens == 0:
            return fresh
        generator = self._generator()
        self._feed(generator, ids)
        while len(fresh) < max_new_tokens and not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token in ends:
                break
            fresh.append(token)
        return fresh

    def choice_scores(
        self, context_ids: Sequence[int], choices_ids: Sequence[Sequence[int]]
    ) -> list[Score]:
        return score_by_logits(self.iter_logits, context_ids, choices_ids)

    def time_once(self, *, prompt: int, generate: int, depth: int = 0, seed: int = 0) -> Timing:
        self._need(depth + max(prompt, generate))
        rng = random.Random(seed)
        draw = [rng.randrange(self.vocabulary) for _ in range(depth + prompt + generate)]
        prefill_s, ttft_ms, decode_s = 0.0, float("nan"), 0.0
        begin, ends = 0.0, list[float]()
        if prompt:
            generator = self._filled(draw[:depth])
            begin = time.perf_counter()
            self._feed(generator, draw[depth : depth + prompt])
            prefill_s = time.perf_counter() - begin
            generator.get_logits().argmax()
            ttft_ms = (time.perf_counter() - begin) * 1e3
        if generate:
            generator = self._filled(draw[:depth])
            singles = [np.asarray([token], dtype=np.int32) for token in draw[depth + prompt :]]
            begin = time.perf_counter()
            for single in singles:
                generator.append_tokens(single)
                ends.append(time.perf_counter())
            decode_s = time.perf_counter() - begin
        token_ms = each_ms(begin, ends) if ends else ()
        return Timing(prompt, generate, depth, prefill_s, ttft_ms, decode_s, token_ms)

    def peak_rss_mib(self) -> float:
        return peak_rss_mib()

    def _generator(self) -> Any:
        """A fresh sequence with an empty cache."""
        params = self.library.GeneratorParams(self.model)
        params.set_search_options(max_length=self.size, **_GREEDY)
        return self.library.Generator(self.model, params)

    def _filled(self, ids: Sequence[int]) -> Any:
        generator = self._generator()
        self._feed(generator, ids)
        return generator

    def _feed(self, generator: Any, ids: Sequence[int]) -> None:
        """Run the model on ids, after what the cache holds; the work is done on return."""
        for start in range(0, len(ids), self.batch):
            piece = ids[start : start + self.batch]
            generator.append_tokens(np.asarray(piece, dtype=np.int32))

    def _need(self, tokens: int) -> None:
        if tokens > self.size:
            raise UsageError(
                f"{tokens} tokens do not fit the open context of {self.size}",
                "open it with a larger context, or take fewer tokens",
            )

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocabulary), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} is outside the vocabulary of {self.vocabulary}")
