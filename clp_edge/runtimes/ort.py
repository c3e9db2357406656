"""Plain ONNX Runtime inside the child process: a folder with model.onnx and a config.json.

For graphs with past key values, as Optimum writes them: the caller holds the cache and feeds it.
Only `child.py` runs this module.
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
from clp_edge.models.ends import end_ids
from clp_edge.runtimes.base import ArtifactInfo, Timing, each_ms
from clp_edge.runtimes.memory import peak_rss_mib
from clp_edge.runtimes.scoring import Score, score_by_logits

PIP_LINE = "pip install 'clp-edge[onnx]'"
GRAPH = "model.onnx"
_PART_BYTES = 256 * 1024 * 1024
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
_PAST, _PRESENT = "past_key_values.", "present."


def load_library() -> ModuleType:
    """Import onnxruntime; MissingDependencyError with the line that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime is not installed ({error})", PIP_LINE) from error
    return onnxruntime


class OrtEngine:
    """A graph with past key values, open in ONNX Runtime: answers a Session's calls."""

    def __init__(self, path: str, threads: int, context: int, kv_type: str, batch: int) -> None:
        library: Any = load_library()
        from transformers import AutoTokenizer

        self.folder = Path(path)
        said = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.size = min(context, int(said["max_position_embeddings"]))
        self.vocabulary = int(said["vocab_size"])
        heads = int(said["num_attention_heads"])
        self.heads = int(said.get("num_key_value_heads") or heads)
        self.width = int(said.get("head_dim") or said["hidden_size"] // heads)
        self.part = max(1, min(batch, _PART_BYTES // (4 * self.vocabulary)))
        self.batch = batch
        options = library.SessionOptions()
        options.intra_op_num_threads = threads
        if kv_type == "f32":  # an exact comparison on a busy machine: threads that do not spin
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        begin = time.perf_counter()
        graph = str(self.folder / GRAPH)
        self.session = library.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        load_ms = (time.perf_counter() - begin) * 1e3
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.past = [name for name in self.inputs if name.startswith(_PAST)]
        wanted = [name.replace(_PAST, _PRESENT) for name in self.past]
        if not self.past or not {"logits", *wanted} <= set(self.outputs):
            raise UsageError(
                f"{graph} has no past key values", "export it again with a cache (-with-past)"
            )
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        settings = self.folder / "generation_config.json"
        more = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        self.ends = end_ids(said, more)
        self.info = ArtifactInfo(
            runtime="onnxruntime",
            runtime_version=f"onnxruntime {library.__version__}",
            backend="CPU",
            architecture=str(said["model_type"]),
            blocks=len(self.past) // 2,
            context_length=int(said["max_position_embeddings"]),
            vocabulary=self.vocabulary,
            load_ms=load_ms,
            bytes=sum(file.stat().st_size for file in self.folder.glob("*.onnx*")),
        )

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        return self.tokenizer.encode(
            text, add_special_tokens=add_special, split_special_tokens=not parse_special
        )

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def end_tokens(self) -> frozenset[int]:
        return self.ends

    def iter_logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        self._need(len(ids))
        self._check_ids(ids)
        cache = self._empty()
        for start in range(0, len(ids), self.part):
            rows, cache = self._run(ids[start : start + self.part], cache)
            yield rows

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, *, stop: Collection[int] = ()
    ) -> list[int]:
        if not ids:
            raise UsageError("there is nothing to continue", "give at least one token")
        self._need(len(ids) + max_new_tokens)
        self._check_ids(ids)
        ends = self.ends | frozenset(stop)
        rows, cache = self._feed(ids, self._empty())
        fresh: list[int] = []
        while len(fresh) < max_new_tokens:
            token = int(rows[-1].argmax())
            if token in ends:
                break
            fresh.append(token)
            if len(fresh) < max_new_tokens:
                rows, cache = self._run([token], cache)
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
        filled = self._feed(draw[:depth], self._empty())[1]
        if prompt:
            begin = time.perf_counter()
            rows, _ = self._feed(draw[depth : depth + prompt], filled)
            prefill_s = time.perf_counter() - begin
            rows[-1].argmax()
            ttft_ms = (time.perf_counter() - begin) * 1e3
        if generate:
            cache = filled  # runs make new arrays: the filled cache is untouched
            begin = time.perf_counter()
            for token in draw[depth + prompt :]:
                _, cache = self._run([token], cache)
                ends.append(time.perf_counter())
            decode_s = time.perf_counter() - begin
        token_ms = each_ms(begin, ends) if ends else ()
        return Timing(prompt, generate, depth, prefill_s, ttft_ms, decode_s, token_ms)

    def peak_rss_mib(self) -> float:
        return peak_rss_mib()

    def _empty(self) -> dict[str, Any]:
        """A cache of no tokens: (batch, heads, tokens, width) each."""
        return {
            name: np.zeros((1, self.heads, 0, self.width), dtype=_TYPES[self.inputs[name].type])
            for name in self.past
        }

    def _feed(self, ids: Sequence[int], cache: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Run ids in pieces of `batch`; (the last piece's logits, the cache)."""
        rows = np.empty((0, self.vocabulary), dtype=np.float32)
        for start in range(0, len(ids), self.batch):
            rows, cache = self._run(ids[start : start + self.batch], cache)
        return rows, cache

    def _run(self, ids: Sequence[int], cache: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        held = next(iter(cache.values())).shape[2]
        given: dict[str, Any] = {"input_ids": np.asarray([ids], dtype=np.int64), **cache}
        if "attention_mask" in self.inputs:
            given["attention_mask"] = np.ones((1, held + len(ids)), dtype=np.int64)
        if "position_ids" in self.inputs:
            given["position_ids"] = np.arange(held, held + len(ids), dtype=np.int64)[None]
        made = dict(zip(self.outputs, self.session.run(self.outputs, given), strict=True))
        rows = made["logits"][0].astype(np.float32, copy=False)
        return rows, {name: made[name.replace(_PAST, _PRESENT)] for name in self.past}

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
