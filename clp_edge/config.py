"""What a run is asked to do: one frozen dataclass per stage, checked when made.

Messages name the flags. `PRESETS` is the one table that says what each preset means. The resolved
configuration is saved beside the result (`clp_edge.json`). Nothing here imports torch.

>>> CutConfig(prune=0.2).count(30)
6
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clp_edge.errors import UsageError
from clp_edge.registry import METHODS, RUNGS
from clp_edge.segment import Segment, check_count

DEFAULT_PRUNE = 0.2
SEQUENCE_LENGTH = 256
EVALUATION_LENGTH = 512


@dataclass(frozen=True)
class Preset:
    """How much work each stage does."""

    own_sequences: int
    """calibration sequences where the model writes them itself"""
    given_sequences: int
    """calibration sequences where the user gives text, which costs less to come by"""
    search_tokens: int
    refit_tokens: int
    """calibration tokens that a window is refitted on, where it is chosen by what is left then"""
    tuning_steps: int
    """of the tuning on KL, at most (and an epoch and a half); the local rung: three times as many
    """
    tuning_rate: float
    """peak learning rate as a share of each tensor's RMS: little text bears less (docs/LOG.md)"""
    evaluation_sequences: int
    bench_rounds: int
    bench_budget_s: float
    """what warm-up and rounds may take together"""
    prompts: int = 4
    """fixed prompts of each of six kinds, 4 at most"""


PRESETS: dict[str, Preset] = {
    "quick": Preset(28, 40, 512, 2_048, 20, 1.5e-3, 8, 6, 90.0, prompts=1),
    "balanced": Preset(192, 224, 1_536, 8_192, 100, 5e-3, 32, 8, 180.0),
    "best": Preset(480, 640, 8_192, 32_768, 120, 5e-3, 64, 15, 600.0),
}


def choose(flag: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value, or a UsageError that names the flag and the nearest allowed one."""
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown value {value!r} of {flag}", f"{hint}choose {', '.join(allowed)}")


_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("KMG", 1)}}
_UNITS |= {f"{p}IB": 1024**i for i, p in enumerate("KMG", 1)}


def parse_bytes(text: str) -> int:
    """Read a size such as "90MB" (of 1000) or "90MiB" (of 1024). Raises UsageError.

    >>> parse_bytes("1.5 GB"), parse_bytes("2MiB")
    (1500000000, 2097152)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise UsageError(
            f"cannot read --max-bytes {text!r} as a size", "give it as in 90MB, 1.5GiB"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def share_of(value: float | str | None) -> float | Literal["auto"] | None:
    """Read --prune: a share of the blocks, or auto. Raises UsageError for anything else.

    >>> share_of("0.2"), share_of("auto")
    (0.2, 'auto')
    """
    if value is None or value == "auto":
        return value  # type: ignore[return-value]
    try:
        return float(value)
    except ValueError:
        raise UsageError(
            f"--prune {value!r} is no share", "give one between 0 and 1, such as 0.2, or auto"
        ) from None


@dataclass(frozen=True)
class CutConfig:
    """How much goes: a share, a number of blocks, or the very blocks."""

    prune: float | Literal["auto"] | None = None
    """a share; "auto": the most that a quality gate lets pass (`pipeline/tries.py`)"""
    drop_blocks: int | None = None
    blocks: str | None = None
    found_by: str | None = None
    """how another command found `blocks`, for the record; None: the user named them"""
    max_bytes: str | None = None
    """a file size: as few blocks go as it allows (`pipeline/sizing.py`)"""
    min_speedup: float | None = None
    """as few blocks go as the bytes need to allow this speed-up"""
    min_tps: float | None = None
    """as few blocks go as the measured memory bandwidth needs for this many tokens per second"""

    def __post_init__(self) -> None:
        given = [
            name
            for name, value in (
                ("--prune", self.prune),
                ("--drop-blocks", self.drop_blocks),
                ("--blocks", self.blocks),
                ("--max-bytes", self.max_bytes),
                ("--min-speedup", self.min_speedup),
                ("--min-tps", self.min_tps),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other", "give one of them")
        if isinstance(self.prune, str) and self.prune != "auto":
            raise UsageError(
                f"--prune {self.prune!r} is no share", "give one between 0 and 1, or auto"
            )
        share = None if isinstance(self.prune, str) else self.prune
        if share is not None and not 0.0 < share < 1.0:
            raise UsageError(
                f"--prune {share:g} is not between 0 and 1",
                "give the share of blocks to drop, such as 0.2",
            )
        if self.drop_blocks is not None and self.drop_blocks < 1:
            raise UsageError(
                f"--drop-blocks {self.drop_blocks} drops nothing", "give a number of at least 1"
            )
        if self.blocks is not None:
            Segment.parse(self.blocks)
        if self.max_bytes is not None:
            parse_bytes(self.max_bytes)
        if self.min_speedup is not None and not self.min_speedup > 1.0:
            raise UsageError(
                f"--min-speedup {self.min_speedup:g} is no speed-up", "give more than 1, as in 1.25"
            )
        if self.min_tps is not None and not 0.0 < self.min_tps < float("inf"):
            raise UsageError(
                f"--min-tps {self.min_tps:g} is no speed", "give tokens per second, as in 25"
            )

    @property
    def auto(self) -> bool:
        """Whether the cut is settled by what passes a quality gate."""
        return self.prune == "auto"

    @property
    def byte_limit(self) -> int | None:
        """--max-bytes as a number."""
        return parse_bytes(self.max_bytes) if self.max_bytes is not None else None

    @property
    def segment(self) -> Segment | None:
        """The blocks named by hand, or None."""
        return Segment.parse(self.blocks) if self.blocks is not None else None

    def count(self, total: int) -> int:
        """How many of `total` blocks go. Raises UsageError where fewer than two would stay."""
        if self.segment is not None:
            if self.segment.last >= total:
                raise UsageError(
                    f"--blocks {self.segment}: the model has blocks 0-{total - 1}",
                    "give FIRST-LAST inside that range",
                )
            count = self.segment.count
        elif self.drop_blocks is not None:
            count = self.drop_blocks
        else:
            if isinstance(self.prune, str):
                raise UsageError(
                    "--prune auto is settled by quality, and none is measured here",
                    "give a share, such as --prune 0.2",
                )
            share = DEFAULT_PRUNE if self.prune is None else self.prune
            count = max(1, round(share * total))
        check_count(count, total)
        return count


@dataclass(frozen=True)
class CalibrationConfig:
    """The text that search and healing see; `spec` None: the model writes it itself."""

    spec: str | None = None
    sequences: int = PRESETS["balanced"].own_sequences
    length: int = SEQUENCE_LENGTH


@dataclass(frozen=True)
class SearchConfig:
    """How the segment is found."""

    method: str = "auto"
    """auto, or a name of METHODS; an alias becomes its name, so that it has the same key"""
    tokens: int = PRESETS["balanced"].search_tokens
    criterion: str = "healed"
    """healed: the KL that is left after the refit of each window; raw: of the cut itself"""
    refit_tokens: int = PRESETS["balanced"].refit_tokens
    segments: int = 1
    """2: say as well whether two separate runs would be better; what goes is one run"""
    compare_seeds: tuple[int, ...] = ()
    """`search --compare` runs every method with each of these"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", METHODS.choose(self.method))
        choose("--criterion", self.criterion, ("healed", "raw"))
        if self.segments not in (1, 2):
            raise UsageError(f"--segments {self.segments} is not looked for", "give 1 or 2")


@dataclass(frozen=True)
class HealConfig:
    """How the cut is mended."""

    rungs: str = "endpoints"
    """none, or the last one of RUNGS to climb"""
    steps: int = PRESETS["balanced"].tuning_steps
    rate: float = PRESETS["balanced"].tuning_rate
    tune_blocks: str = "near"
    """near, endpoints, or ids of blocks that stay (heal/blocks.py)"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", RUNGS.choose(self.rungs))
        words = self.tune_blocks.strip().lower()
        object.__setattr__(self, "tune_blocks", words)
        if not self.named_blocks:
            choose("--tune-blocks", words, ("near", "endpoints"))
        else:
            for part in words.split(","):
                Segment.parse(part)

    @property
    def named_blocks(self) -> bool:
        """Whether the blocks to tune are given by their ids."""
        return re.fullmatch(r"[\d\s,-]+", self.tune_blocks) is not None


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on; `text` None: the held-back part of the calibration text."""

    text: str | None = None
    sequences: int | Literal["all"] = PRESETS["balanced"].evaluation_sequences
    length: int = EVALUATION_LENGTH
    tasks: tuple[str, ...] = ()
    """files of questions, one JSON object a line (clp_edge.evaluate.tasks)"""
    task_items: int | None = None
    """how many of each, spread evenly; None: all"""
    prompts: int = PRESETS["balanced"].prompts
    """fixed prompts of each of six kinds"""

    def __post_init__(self) -> None:
        if self.task_items is not None and self.task_items < 1:
            raise UsageError(f"--task-items {self.task_items} asks nothing", "give 1 or more")

    @classmethod
    def with_tokens(
        cls, text: str | None, tokens: str | None, sequences: int | Literal["all"], **more: Any
    ) -> EvaluationConfig:
        """From --eval-tokens N|all; N is rounded up to whole sequences. `more`: other fields."""
        if tokens is None:
            return cls(text, sequences, **more)
        if tokens != "all" and (not tokens.isdigit() or int(tokens) < 1):
            raise UsageError(
                f"--eval-tokens {tokens!r} is not a number of tokens", "give a number, or all"
            )
        if text is None:
            raise UsageError(
                f"--eval-tokens {tokens} needs --eval-text: without one all of the held-back "
                "calibration text is measured on",
                "give --eval-text FILE as well, or leave --eval-tokens out",
            )
        if tokens == "all":
            return cls(text, "all", **more)
        return cls(text, -(-int(tokens) // EVALUATION_LENGTH), **more)


@dataclass(frozen=True)
class FileConfig:
    """How the files are written, beside their targets."""

    tensor_types: tuple[str, ...] = ()
    """REGEX=TYPE: GGUF matrices whose name has a match get that type; the first match counts"""
    careful: bool = False
    """more bits for the head and for the blocks beside the cut"""
    provider: str = "cpu"
    """the execution provider that ONNX is written for"""
    gpu_layers: int | Literal["auto"] = "auto"
    """layers that llama.cpp computes on the GPU wherever a GGUF file is opened: proved, evaluated
    and measured"""
    converter: str = "auto"
    """who makes a GGUF file of the weights: ours, peer (llama.cpp's own converter) or auto"""

    def __post_init__(self) -> None:
        choose("--converter", self.converter, ("auto", "ours", "peer"))
        if self.gpu_layers != "auto" and self.gpu_layers < 0:
            raise UsageError(f"--gpu-layers {self.gpu_layers}", "give auto, or a number from 0 on")
        choose("--ep", self.provider, ("cpu", "cuda", "dml"))
        for text in self.tensor_types:
            pattern, _, kind = text.rpartition("=")
            if not pattern or not kind:
                raise UsageError(
                    f"cannot read --tensor-type {text!r}",
                    "give REGEX=TYPE, such as 'attn_v=q6_k'",
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"--tensor-type {text!r}: {pattern!r} is no regular expression ({error})",
                    "mend it",
                ) from error

    @property
    def typed(self) -> tuple[tuple[str, str], ...]:
        """(regular expression, type) pairs."""
        split = (text.rpartition("=") for text in self.tensor_types)
        return tuple((pattern, kind) for pattern, _, kind in split)


@dataclass(frozen=True)
class GateConfig:
    """What quality the shipped file has to have; None is no limit (exit code 4 where missed)."""

    max_ppl_ratio: float | None = None
    max_kl: float | None = None
    min_retention: float | None = None


@dataclass(frozen=True)
class BenchConfig:
    """How speed is measured; `wanted` False leaves it out."""

    wanted: bool = True
    rounds: int = PRESETS["balanced"].bench_rounds
    prompt: int = 512
    generate: int = 128
    budget_s: float = PRESETS["balanced"].bench_budget_s


FRONTIER_TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_nl", "q4_0", "q3_k_m", "q2_k")
AIMS = ("bytes", "decode", "ttft", "memory")


@dataclass(frozen=True)
class FrontierConfig:
    """The comparison at equal bytes: dense and cut model at several types (--frontier)."""

    types: tuple[str, ...] = ()
    """GGUF types; none: no comparison"""
    keep: bool = False
    """whether files written for the comparison alone stay"""
    aim: str | None = None
    """one of AIMS: the tool chooses the file that is best in it"""

    def __post_init__(self) -> None:
        words = tuple(dict.fromkeys(one.strip().lower() for one in self.types))
        object.__setattr__(self, "types", words)
        if not all(words):
            raise UsageError(
                "--frontier-types has an empty name", "give types such as q8_0,q4_k_m,q3_k_m"
            )
        if self.aim is not None:
            object.__setattr__(self, "aim", choose("--aim", self.aim.strip().lower(), AIMS))
        if self.keep and not words:
            raise UsageError("--keep-frontier keeps nothing without --frontier", "give both")

    @property
    def wanted(self) -> bool:
        """Whether there is a comparison."""
        return bool(self.types)

    @classmethod
    def of(
        cls, wanted: bool, types: str | None, keep: bool = False, aim: str | None = None
    ) -> FrontierConfig:
        """What the flags mean: --aim and --frontier-types imply --frontier."""
        if types is not None:
            return cls(tuple(types.split(",")), keep, aim)
        return cls(FRONTIER_TYPES if wanted or aim is not None else (), keep, aim)


@dataclass(frozen=True)
class CompressConfig:
    """Everything `clp-edge compress` needs to know."""

    model: str | None = None
    targets: tuple[str, ...] = ("gguf-q4",)
    cut: CutConfig = field(default_factory=CutConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    heal: HealConfig = field(default_factory=HealConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    files: FileConfig = field(default_factory=FileConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    frontier: FrontierConfig = field(default_factory=FrontierConfig)
    out: Path | None = None
    force: bool = False
    resume: bool = True
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    command: str = "clp-edge compress"

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads} is no number of threads", "give 1 or more")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative", "give 0 or more")
        if self.cut.auto and self.gate == GateConfig():
            raise UsageError(
                "--prune auto takes the largest cut that passes, and no quality was asked for",
                "give --max-ppl-ratio, --max-kl or --min-retention as well, such as "
                "--max-ppl-ratio 1.2",
            )
        if self.frontier.wanted and not self.bench.wanted:
            raise UsageError(
                "--frontier measures speed, and --no-bench leaves it out", "leave one of them out"
            )
        if self.frontier.aim is not None and self.gate.min_retention is not None:
            raise UsageError(
                "--aim judges the files by KL and perplexity, and --min-retention asks for tasks",
                "give --max-kl or --max-ppl-ratio instead",
            )
        if self.heal.named_blocks and self.cut.blocks is None:
            raise UsageError(
                f"--tune-blocks {self.heal.tune_blocks} names blocks beside a cut that is still to "
                "be found",
                "name the cut as well with --blocks, or give near or endpoints",
            )
        choose("--device", self.device, ("auto", "cpu", "cuda"))
        choose("--dtype", self.dtype, ("auto", "float32", "float16", "bfloat16"))

    @classmethod
    def of(
        cls,
        model: str | None = None,
        *,
        targets: tuple[str, ...] = ("gguf-q4",),
        preset: str = "balanced",
        prune: float | str | None = None,
        drop_blocks: int | None = None,
        blocks: str | None = None,
        max_bytes: str | None = None,
        min_speedup: float | None = None,
        min_tps: float | None = None,
        search: str = "auto",
        criterion: str = "healed",
        heal: str = "endpoints",
        tune_blocks: str = "near",
        calibration: str | None = None,
        eval_text: str | None = None,
        eval_tokens: str | None = None,
        tasks: tuple[str, ...] = (),
        task_items: int | None = None,
        bench: bool = True,
        frontier: bool = False,
        frontier_types: str | None = None,
        keep_frontier: bool = False,
        aim: str | None = None,
        **more: Any,
    ) -> CompressConfig:
        """What these flags of the command line mean, the sizes taken from the preset.

        `more`: files, gate, out, force, resume, seed, threads, device, dtype, command.
        """
        choose("--preset", preset, tuple(PRESETS))
        work = PRESETS[preset]
        return cls(
            model=model,
            targets=targets,
            cut=CutConfig(
                share_of(prune),
                drop_blocks,
                blocks,
                max_bytes=max_bytes,
                min_speedup=min_speedup,
                min_tps=min_tps,
            ),
            calibration=CalibrationConfig(
                calibration, work.given_sequences if calibration else work.own_sequences
            ),
            search=SearchConfig(search, work.search_tokens, criterion, work.refit_tokens),
            heal=HealConfig(heal, work.tuning_steps, work.tuning_rate, tune_blocks),
            evaluation=EvaluationConfig.with_tokens(
                eval_text,
                eval_tokens,
                work.evaluation_sequences,
                tasks=tasks,
                task_items=task_items,
                prompts=work.prompts,
            ),
            bench=BenchConfig(bench, work.bench_rounds, budget_s=work.bench_budget_s),
            frontier=FrontierConfig.of(frontier, frontier_types, keep_frontier, aim),
            **more,
        )

    def as_json(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


def digest(*parts: Any) -> str:
    """sha256 (hex) of plain values, in a canonical form."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
