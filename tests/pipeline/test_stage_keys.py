"""Resume keys: each input changes the keys of exactly the stages after it, and none is forgotten.

With search, cut, heal, targets and bench settings taken out of the keys, no other test failed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clp_edge import data
from clp_edge.config import (
    BenchConfig,
    CalibrationConfig,
    CompressConfig,
    CutConfig,
    EvaluationConfig,
    FileConfig,
    GateConfig,
    HealConfig,
    SearchConfig,
)
from clp_edge.export.targets import resolve
from clp_edge.models.source import Source
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Ground, Stage, key_of, stage_keys
from clp_edge.pipeline.stages import STAGES, bench, calibrate, evaluate, search
from clp_edge.progress import Quiet
from clp_edge.segment import Segment

ALL = tuple(stage.name for stage in STAGES)
FROM_SEARCH = ("search", "heal", "cut", "export", "evaluate", "bench")
FROM_HEAL = FROM_SEARCH[1:]
FROM_CUT = ("cut", "export", "evaluate", "bench")
FROM_EXPORT = FROM_CUT[1:]


def plan_of(config: CompressConfig) -> Plan:
    """What preflight would say of this configuration, without looking at a model."""
    blocks = 8
    return Plan(
        source=Source("tiny", "folder", "tiny", Path("tiny")),
        fingerprint="f",
        config=None,
        tokenizer=None,
        name="tiny-clp",
        blocks=blocks,
        count=config.cut.count(blocks),
        parameters=100,
        block_parameters=10,
        targets=tuple(
            SimpleNamespace(target=resolve(name))  # type: ignore[misc]
            for name in config.targets
        ),
        forbidden=(),
        documents=None,
        out=config.out or Path("out"),
        threads=config.threads or 2,
        device="cpu" if config.device == "auto" else config.device,
        compute={"bfloat16": torch.bfloat16}.get(config.dtype, torch.float32),
        stored=torch.float32,
        sequence_length=config.calibration.length,
        evaluation_length=config.evaluation.length,
        memory_bytes=1,
        disk_bytes=1,
        warnings=(),
    )


def keys(config: CompressConfig, **changes: Any) -> dict[str, str]:
    plan = dataclasses.replace(plan_of(config), **changes)
    return stage_keys(STAGES, config, plan, Ground.of(config, plan))


def differing(first: dict[str, str], second: dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name in first if first[name] != second[name])


BASE = CompressConfig()


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"seed": 1}, ALL),
        ({"device": "cuda"}, ALL),
        ({"dtype": "bfloat16"}, ALL),
        ({"calibration": CalibrationConfig(sequences=7)}, ALL),
        ({"calibration": CalibrationConfig(length=128)}, ALL),
        ({"evaluation": EvaluationConfig(sequences=3)}, ("text", "evaluate")),
        ({"evaluation": EvaluationConfig(length=128)}, ("text", "evaluate")),
        ({"evaluation": EvaluationConfig(task_items=9)}, ("evaluate",)),
        ({"evaluation": EvaluationConfig(prompts=1)}, ("evaluate",)),
        ({"cut": CutConfig(drop_blocks=3)}, FROM_SEARCH),
        ({"cut": CutConfig(blocks="2-3")}, FROM_SEARCH),
        ({"search": SearchConfig(method="gate")}, FROM_SEARCH),
        ({"search": SearchConfig(tokens=99)}, FROM_SEARCH),
        ({"search": SearchConfig(criterion="raw")}, FROM_SEARCH),
        ({"search": SearchConfig(refit_tokens=99)}, FROM_SEARCH),
        ({"search": SearchConfig(segments=2)}, FROM_SEARCH),
        ({"search": SearchConfig(compare_seeds=(1, 2))}, ()),  # another verb's
        ({"heal": HealConfig(tune_blocks="endpoints")}, FROM_HEAL),
        ({"files": FileConfig(converter="peer")}, FROM_EXPORT),
        ({"heal": HealConfig(rungs="refit")}, FROM_HEAL),
        ({"heal": HealConfig(steps=1)}, FROM_HEAL),
        ({"targets": ("gguf-q8_0",)}, FROM_EXPORT),
        ({"targets": ("gguf-q4", "gguf-q8_0")}, FROM_EXPORT),
        ({"files": FileConfig(careful=True)}, FROM_EXPORT),
        ({"files": FileConfig(gpu_layers=3)}, FROM_EXPORT),
        ({"gate": GateConfig(max_kl=0.1)}, ()),
        ({"bench": BenchConfig(wanted=False)}, FROM_EXPORT),
        ({"bench": BenchConfig(rounds=99)}, ("bench",)),
        ({"bench": BenchConfig(prompt=64)}, ("bench",)),
        ({"bench": BenchConfig(generate=64)}, ("bench",)),
        ({"threads": 7}, ("evaluate", "bench")),
        ({"out": Path("elsewhere")}, ()),
        ({"force": True}, ()),
        ({"resume": False}, ()),
        ({"command": "another spelling"}, ()),
    ],
)
def test_each_setting_redoes_exactly_the_stages_after_it(
    changed: dict[str, Any], again: tuple[str, ...]
) -> None:
    other = dataclasses.replace(BASE, **changed)
    assert differing(keys(BASE), keys(other)) == again


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"fingerprint": "another file"}, ALL),
        ({"documents": data.documents_from_texts(["a text"], "a")}, ALL),
        ({"stored": torch.bfloat16}, ALL),
        ({"name": "other-name"}, FROM_CUT),
        ({"count": 3}, FROM_SEARCH),
        ({"forbidden": (Segment(1, 2),)}, FROM_SEARCH),
        ({"memory_bytes": 2, "disk_bytes": 2, "warnings": ("w",)}, ()),
    ],
)
def test_each_finding_of_preflight_redoes_exactly_the_stages_after_it(
    changed: dict[str, Any], again: tuple[str, ...]
) -> None:
    assert differing(keys(BASE), keys(BASE, **changed)) == again


def test_another_evaluation_text_under_the_same_name_is_another_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    config = dataclasses.replace(BASE, evaluation=EvaluationConfig(text=str(path)))
    path.write_text("one text")
    before = keys(config)
    path.write_text("another")
    assert differing(before, keys(config)) == ("text", "evaluate")


def test_another_task_under_the_same_name_is_another_task(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    config = dataclasses.replace(BASE, evaluation=EvaluationConfig(tasks=(str(path),)))
    path.write_text('{"context": "a", "target": "b"}')
    before = keys(config)
    assert differing(keys(BASE), before) == ("evaluate",)
    path.write_text('{"context": "a", "target": "c"}')
    assert differing(before, keys(config)) == ("evaluate",)


def test_another_calibration_text_of_the_same_length_is_another_text() -> None:
    first = data.documents_from_texts(["abc"], "a")
    second = data.documents_from_texts(["abd"], "a")
    assert differing(keys(BASE, documents=first), keys(BASE, documents=second)) == ALL


NOT_KEYED = {"out", "force", "resume", "command", "model"}
"""Where the result lies and how it was asked for; the model counts through its fingerprint."""


def changed_value(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2
    raise NotImplementedError(f"say in OTHER what else {value!r} could be")


OTHER: dict[tuple[str, str], Any] = {
    ("files", "gpu_layers"): 3,
    ("cut", "prune"): 0.5,
    ("cut", "drop_blocks"): 4,
    ("cut", "blocks"): "1-3",
    ("cut", "found_by"): "another command",
    ("files", "tensor_types"): ("attn_v=q6_k",),
    ("files", "provider"): "cuda",
    ("cut", "max_bytes"): None,  # counts through the number of blocks, tested above
    ("cut", "min_speedup"): None,
    ("cut", "min_tps"): None,
    ("calibration", "spec"): None,  # counts through the documents, tested above
    ("search", "method"): "gate",
    ("search", "criterion"): "raw",
    ("search", "compare_seeds"): (),  # of `search --compare`, whose own stage it enters
    ("heal", "tune_blocks"): "endpoints",
    ("files", "converter"): "peer",
    ("heal", "rungs"): "refit",
    ("evaluation", "text"): None,  # tested above
    ("evaluation", "tasks"): (),  # tested above
    ("evaluation", "task_items"): 5,
    ("", "targets"): ("gguf-q8_0",),
    ("", "threads"): 7,
    ("", "device"): "cuda",
    ("", "dtype"): "bfloat16",
    ("bench", "budget_s"): 1.0,
    ("bench", "bench_budget_s"): 1.0,
}


def every_setting() -> list[tuple[str, str]]:
    found = []
    for row in dataclasses.fields(CompressConfig):
        value = getattr(BASE, row.name)
        if row.name in ("gate", "frontier"):
            continue  # judged on what was measured; test_frontier.py has the comparison's keys
        if dataclasses.is_dataclass(value):
            found += [(row.name, inner.name) for inner in dataclasses.fields(value)]
        elif row.name not in NOT_KEYED:
            found.append(("", row.name))
    return found


@pytest.mark.parametrize(("part", "name"), every_setting())
def test_no_setting_is_forgotten(part: str, name: str) -> None:
    """A setting that someone adds to the configuration has to enter some key."""
    holder = getattr(BASE, part) if part else BASE
    old = getattr(holder, name)
    new = OTHER[part, name] if (part, name) in OTHER else changed_value(old)
    if new == old:
        return
    holder = dataclasses.replace(holder, **{name: new})
    other = dataclasses.replace(BASE, **{part: holder}) if part else holder
    assert differing(keys(BASE), keys(other)), f"{part}.{name} changes no key"


def test_stages_stand_after_what_they_need() -> None:
    seen: list[Stage[Any, Any]] = []
    for stage in STAGES:
        assert all(need in seen for need in stage.needs), stage.name
        seen.append(stage)
    assert len(set(ALL)) == len(ALL)


def test_inputs_hold_what_the_stage_may_see_and_nothing_unkeyed_but_threads() -> None:
    for stage in STAGES:
        given = stage.inputs(BASE, plan_of(BASE))
        hidden = [name for name, value in key_of(given).items() if value is None]
        optional = {"given", "text", "documents", "found_by", "task_items"}
        assert set(hidden) - optional <= {"threads"}, stage.name


def test_a_stage_cannot_read_what_it_does_not_declare() -> None:
    ground = Ground.of(BASE, plan_of(BASE))
    context = Context(ground, folder=None, observer=Quiet())  # type: ignore[arg-type]
    context.keep(search.STAGE, "record")  # type: ignore[arg-type]
    assert context.record(search.STAGE) == "record"
    context.running = bench.STAGE
    with pytest.raises(LookupError, match="bench reads search"):
        context.record(search.STAGE)
    with pytest.raises(LookupError, match="bench reads calibrate"):
        calibrate.calibration(context)
    context.running = evaluate.STAGE
    assert context.record(search.STAGE) == "record"
