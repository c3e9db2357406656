"""A model as lm-eval's tasks ask it: log-likelihoods, rolling windows, greedy text until a stop.

Where a continuation begins, what stands before an empty context and which end of a long one is cut
are lm-eval's own rules (`TemplateLM`; api/model.py, models/huggingface.py), so that its figures
compare. lm-eval is an extra, so it is imported when `model_class` is called and not before.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.evaluate.choices import Score
from clp_edge.evaluate.speaker import Speaker
from clp_edge.progress import Progress, silent

MOST_NEW_TOKENS = 256
"""Where a task does not say: lm-eval's own default."""
FIRST_PIECE = 16
"""Tokens that are written before the text is searched for a stop; then twice as many, and so on."""
PIECE_BYTES = 256 * 1024 * 1024
"""Of the logits of one scored continuation; a longer one is scored in pieces."""


@functools.cache
def model_class() -> Any:
    """`Answering` as a model of lm-eval: call it with Answering's arguments."""
    from lm_eval.api.model import TemplateLM

    class ArtifactLM(Answering, TemplateLM):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            TemplateLM.__init__(self)
            Answering.__init__(self, *arguments, **named)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[Score]:
            return TemplateLM.loglikelihood(self, requests, disable_tqdm=True)

    return ArtifactLM


class Answering:
    """The answers of a `Speaker`; `tokenizer` is a transformers tokenizer.

    Args: `window`, the most tokens that go into the model at once.
    """

    def __init__(
        self, speaker: Speaker, tokenizer: Any, *, window: int, progress: Progress = silent
    ) -> None:
        self.speaker = speaker
        self.tokenizer = tokenizer
        self.max_length = window
        self.piece = max(1, PIECE_BYTES // (4 * speaker.vocabulary))
        self.progress = progress

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @functools.cached_property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @functools.cached_property
    def _prefix_text(self) -> str:
        return self.tokenizer.decode([self.prefix_token_id])

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The tokenizer's own rule for BOS, and no second one before a text that has it."""
        if add_special_tokens is None and string.startswith(self._prefix_text):
            add_special_tokens = False
        more = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **more)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """The whole text's log-likelihood, each token predicted once, windows as full as can be."""
        from lm_eval import utils

        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for at, request in enumerate(requests):
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for pair in pairs:
                windows.append((None, *utils.make_disjoint_window(pair)))
                owners.append(at)
        sums = [0.0] * len(requests)
        for at, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[at] += total
        return sums

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[Score]:
        """Requests with the same context ids are asked together: it is computed once."""
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for at, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise ClpEdgeError(
                    f"a continuation has {len(continuation)} tokens, and 1 to {self.max_length} "
                    "can be scored",
                    "leave that suite out",
                )
            # The last token is predicted and never fed, hence one more than the window.
            kept = (context + continuation)[-(self.max_length + 1) :]
            groups.setdefault(tuple(kept[: -len(continuation)]), []).append((at, continuation))
        scores: list[Score] = [(0.0, False)] * len(requests)
        done = 0
        for start, members in groups.items():
            found = self._score(start, [continuation for _, continuation in members])
            for (at, _), score in zip(members, found, strict=True):
                scores[at] = score
            done += len(members)
            self.progress(done, len(requests), f"log-likelihood {done} of {len(requests)}")
        return scores

    def _score(self, context: Sequence[int], choices: Sequence[Sequence[int]]) -> list[Score]:
        if max(map(len, choices)) <= self.piece:
            return list(self.speaker.score(context, choices))
        scores = []
        for choice in choices:
            total, greedy = 0.0, True
            for start in range(0, len(choice), self.piece):
                before = [*context, *choice[:start]]
                part = choice[start : start + self.piece]
                value, top = self.speaker.score(before, [part])[0]
                total, greedy = total + value, greedy and top
            scores.append((total, greedy))
        return scores

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Greedy text, cut before the first of the request's stops."""
        texts = []
        for at, request in enumerate(requests, start=1):
            context, settings = request.args
            until, most = generation_settings(settings)
            texts.append(self._write(context, until, most))
            self.progress(at, len(requests), f"text {at} of {len(requests)}")
        return texts

    def _write(self, context: str, until: list[str], most: int) -> str:
        room = self.max_length - most
        if room < 1:
            raise ClpEdgeError(
                f"a suite wants {most} new tokens, and {self.max_length} are all that fit",
                "leave that suite out",
            )
        ids = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        ends = frozenset({self.eot_token_id, *self._special(until)})
        made: list[int] = []
        piece = FIRST_PIECE
        while True:
            piece = min(piece, most - len(made))
            fresh = self.speaker.generate([*ids, *made], piece, ends)
            made += fresh
            text = self.tokenizer.decode(made, skip_special_tokens=True)
            ended = len(fresh) < piece or len(made) == most
            if ended or any(stop in text for stop in until):
                break
            piece = len(made)
        for stop in until:
            text = text.split(stop)[0]
        return text

    def _special(self, until: list[str]) -> set[int]:
        """Stops that are one special token: decoding drops them from the text."""
        tokens, ids = self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids
        special = dict(zip(tokens, ids, strict=True))
        return {int(special[stop]) for stop in until if stop in special}


def generation_settings(settings: dict[str, Any]) -> tuple[list[str], int]:
    """(stops, most new tokens) of a task's generation_kwargs. Raises UsageError where it samples.

    >>> generation_settings({"until": "\\n", "do_sample": False, "max_gen_toks": 8})
    (['\\n'], 8)
    """
    temperature = float(settings.get("temperature") or 0.0)
    sampled = settings.get("do_sample", temperature > 0)
    if sampled or int(settings.get("num_beams") or 1) > 1:
        raise UsageError(
            "the suite samples or searches with beams, and clp-edge writes greedily",
            "choose another suite",
        )
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    given = [int(settings[name]) for name in names if settings.get(name) is not None]
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    return [stop for stop in stops if stop], given[0] if given else MOST_NEW_TOKENS
