"""torch inside the child process: a Hugging Face folder, float32 on the CPU, its own dtype on CUDA.

It answers as the llama.cpp engine does, so a folder can stand in the same table as its GGUF file.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from clp_edge.errors import UsageError
from clp_edge.models.ends import end_ids
from clp_edge.runtimes import scoring
from clp_edge.runtimes.base import ArtifactInfo, Timing, each_ms
from clp_edge.runtimes.memory import peak_rss_mib
from clp_edge.runtimes.scoring import Score

_PART_BYTES = 256 * 1024 * 1024


Forward = Callable[[torch.Tensor, Any, int], tuple[torch.Tensor, Any]]
"""(ids (batch, tokens), cache or None, logits of how many last tokens, 0 for all) -> (logits
(batch, tokens, vocabulary), cache)"""


@torch.no_grad()
def score_branches(
    forward: Forward,
    context: Sequence[int],
    choices: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> list[Score]:
    """Every choice after one context, which runs once: the choices are a batch on its cache.

    They are padded on the right, where a causal model does not look. A batch holds as many as keep
    its logits within 256 MB.
    """
    scoring.check(context, choices)
    rows, cache = forward(torch.tensor([list(context)], device=device), None, 1)
    first = rows[0, -1:].float().cpu().numpy()
    longest = max(len(choice) for choice in choices) - 1
    if longest == 0:
        return [scoring.score_rows(first, choice) for choice in choices]
    room = max(1, _PART_BYTES // (4 * longest * first.shape[-1]))
    scores = []
    for start in range(0, len(choices), room):
        group = choices[start : start + room]
        ids = torch.zeros(len(group), longest, dtype=torch.int64)
        for row, choice in enumerate(group):
            ids[row, : len(choice) - 1] = torch.tensor(list(choice[:-1]), dtype=torch.int64)
        branch = cache if start + room >= len(choices) else copy.deepcopy(cache)
        branch.batch_repeat_interleave(len(group))
        rows, _ = forward(ids.to(device), branch, 0)
        for row, choice in enumerate(group):
            later = rows[row, : len(choice) - 1].float().cpu().numpy()
            scores.append(scoring.score_rows(np.concatenate([first, later]), choice))
    return scores


class TorchEngine:
    """A Hugging Face folder open in torch: answers a Session's calls in the child."""

    def __init__(
        self,
        path: str,
        threads: int,
        context: int,
        kv_type: str,
        batch: int,
        device: str = "auto",
    ) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("torch finds no CUDA device", "take --device auto or cpu")
        here = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = here if device == "auto" else device
        exact = self.device == "cpu" or kv_type == "f32"
        self.size = context
        begin = time.perf_counter()
        loaded = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32 if exact else "auto", local_files_only=True
        )
        self.model: Any = loaded.to(self.device).eval()
        load_ms = (time.perf_counter() - begin) * 1e3
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        config = self.model.config
        self.vocabulary = int(config.vocab_size)
        self.part = max(1, min(batch, _PART_BYTES // (4 * self.vocabulary)))
        self.info = ArtifactInfo(
            runtime="torch",
            runtime_version=f"torch {torch.__version__}, transformers {transformers.__version__}",
            backend=self.device.upper(),
            architecture=str(config.model_type),
            blocks=int(config.num_hidden_layers),
            context_length=int(config.max_position_embeddings),
            vocabulary=self.vocabulary,
            load_ms=load_ms,
            bytes=sum(file.stat().st_size for file in Path(path).glob("*.safetensors")),
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
        return end_ids(self.model.generation_config, self.model.config)

    def iter_logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        self._need(len(ids))
        cache = None
        for start in range(0, len(ids), self.part):
            out = self._forward(ids[start : start + self.part], cache, 0)
            cache = out.past_key_values
            yield out.logits[0].float().cpu().numpy()

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, *, stop: Collection[int] = ()
    ) -> list[int]:
        if not ids:
            raise UsageError("there is nothing to continue", "give at least one token")
        self._need(len(ids) + max_new_tokens)
        ends = self.end_tokens() | frozenset(stop)
        out = self._forward(ids, None, 1)
        fresh: list[int] = []
        while len(fresh) < max_new_tokens:
            token = int(out.logits[0, -1].argmax())
            if token in ends:
                break
            fresh.append(token)
            if len(fresh) < max_new_tokens:
                out = self._forward([token], out.past_key_values, 1)
        return fresh

    def choice_scores(
        self, context_ids: Sequence[int], choices_ids: Sequence[Sequence[int]]
    ) -> list[Score]:
        self._need(scoring.check(context_ids, choices_ids))

        def forward(ids: torch.Tensor, cache: Any, keep: int) -> tuple[torch.Tensor, Any]:
            out = self._forward(ids, cache, keep)
            return out.logits, out.past_key_values

        return score_branches(forward, context_ids, choices_ids, torch.device(self.device))

    def time_once(self, *, prompt: int, generate: int, depth: int = 0, seed: int = 0) -> Timing:
        self._need(depth + max(prompt, generate))
        rng = random.Random(seed)
        draw = [rng.randrange(self.vocabulary) for _ in range(depth + prompt + generate)]
        prefill_s, ttft_ms, decode_s = 0.0, float("nan"), 0.0
        begin, ends = 0.0, list[float]()
        if prompt:
            cache = self._filled(draw[:depth])
            begin = time.perf_counter()
            out = self._forward(draw[depth : depth + prompt], cache, 1)
            self._synchronize()
            prefill_s = time.perf_counter() - begin
            int(out.logits[0, -1].argmax())
            ttft_ms = (time.perf_counter() - begin) * 1e3
        if generate:
            cache = self._filled(draw[:depth])
            begin = time.perf_counter()
            for token in draw[depth + prompt :]:
                cache = self._forward([token], cache, 1).past_key_values
                self._synchronize()
                ends.append(time.perf_counter())
            decode_s = time.perf_counter() - begin
        token_ms = each_ms(begin, ends) if ends else ()
        return Timing(prompt, generate, depth, prefill_s, ttft_ms, decode_s, token_ms)

    def peak_rss_mib(self) -> float:
        return peak_rss_mib()

    def _filled(self, ids: Sequence[int]) -> Any:
        """A fresh cache that holds `ids`; the work is done when it returns."""
        cache = self._forward(ids, None, 1).past_key_values if ids else None
        self._synchronize()
        return cache

    def _forward(self, ids: Sequence[int] | torch.Tensor, cache: Any, keep: int) -> Any:
        """ids: the tokens of one sequence, or (batch, tokens)."""
        if not isinstance(ids, torch.Tensor):
            ids = torch.tensor([list(ids)])
        tokens = ids.to(self.device)
        return self.model(
            tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep, return_dict=True
        )

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _need(self, tokens: int) -> None:
        if tokens > self.size:
            raise UsageError(
                f"{tokens} tokens do not fit the open context of {self.size}",
                "open it with a larger context, or take fewer tokens",
            )
