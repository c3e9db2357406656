"""The row of a family that the table does not have: found by looking at its code, then proved.

A small twin of the model (its own code and flags, few narrow blocks, random weights of which every
one matters) is built and run. Read off it:
- the one list of L blocks of one kind, the embedding, the head, the norm between them;
- the two modules whose outputs enter the residual stream. Gated with g, a branch changes a block
  linearly: block(x) - x is g times what the branch adds, with the other one gated off; with both
  off the block is the identity. A norm behind a branch undoes a gate before it, a norm or a matrix
  before a branch is not linear in it: neither passes. Where several modules in a row pass (a
  projection, the attention around it, a dropout behind it) the last one is taken;
- the last matrix that the second branch adds by: a number added to its output must come out
  unchanged, or times a number of the config. Only where there is one can the refit mend;
- how the logits leave the head.

Proved before use, on the same twin: blocks run one by one equal the model; gating a block off
equals cutting it, in memory, rebuilt from its saved config, and with a cache.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clp_edge.errors import UnsupportedModelError
from clp_edge.models.cutting import cut_config, drop_blocks
from clp_edge.models.families import FAMILIES, Family
from clp_edge.models.quiet import quiet

if TYPE_CHECKING:
    from clp_edge.models.anatomy import Anatomy

    TakeApart = Callable[[Any, Family], Anatomy]

_BLOCKS = 4
_HEADS = 4
_VOCABULARY = 128
_IDS = (2, 24)
_CLOSE = 1e-4
"""Relative to the largest number: float32 rounding of a few sums, a hundred times over."""
_MATTERS = 1e-3
"""The least share of the stream that a branch must change, to count as one."""
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def find_family(config: Any, take_apart: TakeApart) -> Family:
    """The row of this config's family. Takes a second, once for each config.

    Raises UnsupportedModelError that names what could not be found or did not hold.
    """
    kind: Any = type(config)
    return _found(kind, config.to_json_string(use_diff=False), take_apart)


@functools.lru_cache(maxsize=32)
def _found(kind: Any, text: str, take_apart: TakeApart) -> Family:
    config = kind.from_dict(json.loads(text))
    # the caller may be on the meta device, and counts on its own random numbers
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        model = _twin(config)
        look = _Look(model)
        row = look.row()
        body = take_apart(model, row)
        row = look.branches(body)
        row = look.logits(replace(body, family=row))
        _prove(model, row, take_apart)
    return row


def _refused(config: Any, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"architecture {config.model_type!r} is not known to clp-edge, and a look at its code says "
        f"that it cannot be cut safely: {why}",
        f"known by name: {', '.join(sorted(FAMILIES))}",
    )


def _twin(config: Any) -> Any:
    """The family's own code with a few narrow blocks; with blocks as wide as the model's where its
    code does not let itself be made narrow."""
    from transformers import AutoModelForCausalLM

    problem = ""
    for narrow in (True, False):
        small = copy.deepcopy(config)
        try:
            _shrink(small, narrow=narrow)
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(small).float().eval()
            _randomize(model)
            model(torch.randint(_VOCABULARY, _IDS), use_cache=False)
            return model.requires_grad_(False)
        except Exception as error:  # whatever a stranger's code raises is the answer
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise _refused(config, f"a small model of it cannot be built or run ({problem})")


def _shrink(config: Any, *, narrow: bool) -> None:
    total = int(config.num_hidden_layers)
    if total > _BLOCKS:
        cut_config(config, range(_BLOCKS, total))
    config.vocab_size = _VOCABULARY
    for name in _TOKENS:
        setattr(config, name, None)
    if not narrow:
        return
    heads, hidden = int(config.num_attention_heads), int(config.hidden_size)
    size = int(getattr(config, "head_dim", None) or hidden // heads)
    for name in _KEY_HEADS:
        given = getattr(config, name, None)
        if isinstance(given, int):
            setattr(config, name, {heads: _HEADS, 1: 1}.get(given, _HEADS // 2))
    config.num_attention_heads = _HEADS
    if getattr(config, "word_embed_proj_dim", None) == hidden:
        config.word_embed_proj_dim = _HEADS * size
    config.hidden_size = _HEADS * size
    for name in _WIDTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 2 * _HEADS * size)


def _randomize(model: Any) -> None:
    """Random gains and biases: a default start leaves them at one and zero, and hides mistakes."""
    generator = torch.Generator().manual_seed(0)
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.add_(0.2 * noise)
        elif parameter is embedding:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    size = float(other.abs().max().clamp_min(1e-6))
    return float((one - other).abs().max()) <= _CLOSE * size


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[[Any, Any, Any], Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@dataclass
class _Look:
    """One twin under inspection."""

    model: Any

    def __post_init__(self) -> None:
        self.config = self.model.config
        self.ids = torch.randint(
            _VOCABULARY, _IDS, generator=torch.Generator().manual_seed(1), dtype=torch.int64
        )
        self.expected = self.model(self.ids, use_cache=False).logits

    def _path(self, module: Any, what: str, kind: type) -> str:
        if not isinstance(module, kind):
            raise _refused(self.config, f"its {what} is {type(module).__name__}")
        return next(name for name, one in self.model.named_modules() if one is module)

    def _decoder(self) -> str:
        """Where all but the head is: by its prefix, or the one child that has the embedding."""
        named = str(self.model.base_model_prefix)
        if named and hasattr(self.model, named):
            return named
        embedding = self.model.get_input_embeddings()
        holding = [
            name
            for name, child in self.model.named_children()
            if any(module is embedding for module in child.modules()) and child is not embedding
        ]
        if len(holding) != 1:
            raise _refused(self.config, "no decoder below the head was found")
        return holding[0]

    def row(self) -> Family:
        """What can be seen without a probe; the branches are still missing."""
        embedding = self._path(self.model.get_input_embeddings(), "embedding", nn.Embedding)
        head = self._path(self.model.get_output_embeddings(), "head", nn.Linear)
        decoder = self._decoder()
        blocks = self._blocks()
        row = Family(
            str(self.config.model_type),
            decoder=decoder,
            blocks=blocks,
            embedding=embedding,
            head=head,
            found=True,
        )
        return replace(row, final_norm=self._final_norm(row))

    def _blocks(self) -> str:
        total = int(self.config.num_hidden_layers)
        lists = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList)
            and len(module) == total
            and len({type(block) for block in module}) == 1
        ]
        outer = [a for a in lists if not any(a.startswith(f"{b}.") for b in lists)]
        if len(outer) != 1:
            raise _refused(
                self.config,
                f"{len(outer)} lists of {total} blocks of one kind were found where one is needed",
            )
        return outer[0]

    def _final_norm(self, row: Family) -> str:
        decoder = self.model.get_submodule(row.decoder)
        last = self.model.get_submodule(row.blocks)[-1]
        seen: dict[str, Tensor] = {}
        passed: dict[str, bool] = {}

        def watch(name: str) -> Callable[[Any, Any, Any], None]:
            def hook(_module: Any, inputs: Any, output: Any) -> None:
                given, made = _first(inputs), _first(output)
                if "" in seen and isinstance(given, Tensor) and isinstance(made, Tensor):
                    passed[name] = torch.equal(given, seen[""])
                    seen[name] = made

            return hook

        def stop(_module: Any, _inputs: Any, output: Any) -> None:
            seen[""] = _first(output)

        outside = {
            module: watch(f"{row.decoder}.{name}")
            for name, module in decoder.named_modules()
            if name and not f"{row.decoder}.{name}.".startswith(f"{row.blocks}.")
        }
        with _hooked({last: stop, **outside}):
            end = decoder(input_ids=self.ids, use_cache=False).last_hidden_state
        for name, goes in passed.items():
            if goes and torch.equal(seen[name], end):
                return name
        raise _refused(self.config, "no single norm between the last block and the head was found")

    def branches(self, body: Anatomy) -> Family:
        """The row with the two branches and, where there is one, the last matrix."""
        hidden, arguments = body.prepare(self.ids)
        pairs = [_Block(body, i, hidden, arguments).pair() for i in range(len(body))]
        if None in pairs or len(set(pairs)) != 1:
            raise _refused(
                self.config,
                "no two modules of a block were found whose outputs are all that enters the "
                "residual stream",
            )
        attention, mlp = pairs[0]  # type: ignore[misc]
        row = replace(body.family, attention=attention, attention_branch=attention, mlp_branch=mlp)
        return _Block(body, 1, hidden, arguments).refitted(row)

    def logits(self, body: Anatomy) -> Family:
        """The row that says how the logits leave the head."""
        row = body.family
        numbers = [
            name
            for name, value in vars(self.config).items()
            if isinstance(value, float | int) and not isinstance(value, bool) and value > 0
        ]
        candidates = [row]
        for field in ("logit_multiplier", "logit_divisor", "logit_softcap"):
            candidates += [replace(row, **{field: name}) for name in numbers]
        final = body.final_hidden(self.ids)
        for candidate in candidates:
            if _equal(replace(body, family=candidate).logits(final), self.expected):
                return candidate
        raise _refused(self.config, "its logits are not its head's, times or over a number")


@dataclass
class _Block:
    """One block of the twin and an input of it."""

    body: Anatomy
    index: int
    hidden: Tensor
    arguments: Any

    def run(self, hooks: Mapping[nn.Module, Callable[[Any, Any, Any], Any]]) -> Tensor:
        with _hooked(hooks):
            return self.body.run_block(self.index, self.hidden, self.arguments)

    def step(self, gates: Mapping[str, float]) -> Tensor:
        """What the block adds to its input with these gates."""

        def gate(by: float) -> Callable[[Any, Any, Any], Any]:
            return lambda _module, _inputs, output: _with_first(output, by * _first(output))

        return (
            self.run({self.body.submodule(self.index, p): gate(g) for p, g in gates.items()})
            - self.hidden
        )

    def candidates(self) -> dict[str, int]:
        """Modules that run once and give a hidden state -> the order in which they end."""
        order = count()
        times: dict[str, list[int]] = {}

        def watch(name: str) -> Callable[[Any, Any, Any], None]:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                made = _first(output)
                # some hand the tokens of all sequences on in one row of states
                fits = (
                    isinstance(made, Tensor)
                    and made.numel() == self.hidden.numel()
                    and made.shape[-1] == self.hidden.shape[-1]
                )
                times.setdefault(name, []).append(next(order) if fits else -1)

            return hook

        block = self.body.blocks[self.index]
        self.run({module: watch(name) for name, module in block.named_modules() if name})
        return {name: ends[0] for name, ends in times.items() if len(ends) == 1 and ends[0] >= 0}

    def pair(self) -> tuple[str, str] | None:
        """The two modules that the residual stream is fed by, latest first among those that do."""
        ends = self.candidates()
        latest = sorted(ends, key=lambda name: -ends[name])
        for at, second in enumerate(latest):
            for first in latest[at + 1 :]:
                if f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}."):
                    continue
                if self._feeds(first, second):
                    return first, second
        return None

    def _feeds(self, first: str, second: str) -> bool:
        least = _MATTERS * float(self.hidden.abs().max())
        if float(self.step({first: 0.0, second: 0.0}).abs().max()) > _CLOSE * least:
            return False
        for one, other in ((first, second), (second, first)):
            whole = self.step({other: 0.0})
            half = self.step({one: 0.5, other: 0.0})
            if float(whole.abs().max()) < least or not _equal(2.0 * half, whole):
                return False
        return True

    def refitted(self, row: Family) -> Family:
        """The row with the last matrix of the second branch, or with the reason for none."""
        ends = self.candidates()
        block = self.body.blocks[self.index]
        plain = self.run({})
        noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2))

        def push(_module: Any, _inputs: Any, output: Any) -> Any:
            return _with_first(output, _first(output) + noise.view_as(_first(output)))

        between = [
            name
            for name, end in ends.items()
            if ends[row.attention_branch] < end <= ends[row.mlp_branch]
        ]
        for name in sorted(between, key=lambda name: -ends[name]):
            module = block.get_submodule(name)
            if not isinstance(module, nn.Linear) or self._reads(module) is None:
                continue
            change = self.run({module: push}) - plain
            by = float((change * noise).sum() / (noise * noise).sum())
            if not _equal(change, by * noise):
                continue
            if abs(by - 1.0) <= _CLOSE:
                return replace(row, down_projection=name)
            named = [
                attribute
                for attribute, value in vars(self.body.config).items()
                if isinstance(value, float) and abs(value - by) <= _CLOSE * abs(by)
            ]
            if len(named) == 1:
                return replace(row, down_projection=name, residual_multiplier=named[0])
        return replace(
            row,
            down_projection="",
            no_refit=f"in {row.model_type} no last matrix was found whose output enters the "
            "residual stream as it is",
        )

    def _reads(self, module: nn.Module) -> Tensor | None:
        """What a module reads, where that is (batch, tokens, width)."""
        seen: list[Any] = []
        self.run({module: lambda _module, inputs, _output: seen.append(_first(inputs))})
        return seen[0] if seen and seen[0].shape[:2] == self.hidden.shape[:2] else None


def _prove(model: Any, row: Family, take_apart: TakeApart) -> None:
    """Raises UnsupportedModelError where the row does not hold."""
    from transformers import AutoModelForCausalLM

    config = model.config
    body = take_apart(model, row)
    ids = torch.randint(_VOCABULARY, _IDS, generator=torch.Generator().manual_seed(3))
    dense = model(ids, use_cache=False).logits
    hidden, arguments = body.prepare(ids)
    hidden = body.run_blocks(range(len(body)), hidden, arguments)
    if not _equal(body.logits(body.normed(hidden)), dense):
        raise _refused(config, "its blocks, run one after the other, do not make up the model")
    for gone in range(len(body) if len(body) > 2 else 0):
        with body.gated([float(i != gone) for i in range(len(body))]):
            off = model(ids, use_cache=False).logits
        if _equal(off, dense):
            raise _refused(config, f"block {gone} gated off changes nothing")
        cut = copy.deepcopy(model)
        drop_blocks(cut, row.blocks, [gone])
        saved = json.loads(cut.config.to_json_string(use_diff=False))
        try:
            again = AutoModelForCausalLM.from_config(type(config).from_dict(saved)).float().eval()
            again.load_state_dict(cut.state_dict())
            head = cut(ids[:, :-1], use_cache=True)
            rest = cut(ids[:, -1:], past_key_values=head.past_key_values, use_cache=True)
            cached = torch.cat([head.logits, rest.logits], dim=1)
            ways = {
                "cutting a block": cut(ids, use_cache=False).logits,
                "the cut model built again from its config": again(ids, use_cache=False).logits,
                "the cut model with a cache": cached,
            }
        except Exception as error:  # whatever a stranger's code raises is the answer
            said = " ".join(str(error).split())[:200]
            raise _refused(
                config, f"without block {gone} it does not run ({type(error).__name__}: {said})"
            ) from error
        for what, logits in ways.items():
            if not _equal(logits, off):
                raise _refused(config, f"{what} is not the same as gating it off (block {gone})")
