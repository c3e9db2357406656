"""What the learning stages compute in: by the CPU's flags, with the reason, kept on resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clp_edge.models.anatomy import dissect
from clp_edge.models.precision import NO_AUTOCAST, Learning, choose
from clp_edge.pipeline.stage import _kept_learning
from tests.tiny import random_ids, tiny_model


@pytest.mark.parametrize(
    ("wanted", "device", "flags", "expected"),
    [
        ("auto", "cpu", {"avx2", "avx512_bf16"}, (True, "this CPU has avx512_bf16")),
        ("auto", "cpu", {"avx512_bf16", "amx_bf16"}, (True, "amx_bf16 and avx512_bf16")),
        ("auto", "cpu", {"avx512f"}, (False, "neither amx_bf16 nor avx512_bf16")),
        ("auto", "cuda", {"amx_bf16"}, (False, "on cuda")),
        ("float32", "cpu", {"amx_bf16"}, (False, "--dtype float32")),
        ("bfloat16", "cpu", {"amx_bf16"}, (False, "--dtype bfloat16")),
    ],
)
def test_the_flags_decide_where_the_user_does_not(
    wanted: str, device: str, flags: set[str], expected: tuple[bool, str]
) -> None:
    found = choose(wanted, device, flags=flags)
    assert found.autocast is expected[0]
    assert expected[1] in found.reason
    assert found.dtype == (torch.bfloat16 if expected[0] else None)


@pytest.mark.parametrize("began", [Learning(True, "this CPU has amx_bf16"), NO_AUTOCAST])
def test_a_resumed_run_keeps_what_it_began_with(began: Learning) -> None:
    for flags in (set(), {"amx_bf16"}):
        assert choose("auto", "cpu", kept=began.name, flags=flags) == began
    assert not choose("float32", "cpu", kept=began.name, flags={"amx_bf16"}).autocast


def test_what_a_folder_says_of_it(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(out=tmp_path)
    again: Any = SimpleNamespace(force=False, resume=True)
    anew: Any = SimpleNamespace(force=True, resume=True)
    assert _kept_learning(again, plan) is None
    for text in ("{", "[]", json.dumps({"learning": 3}), "{}"):
        (tmp_path / "clp_edge.json").write_text(text)
        assert _kept_learning(again, plan) is None
    (tmp_path / "clp_edge.json").write_text(json.dumps({"learning": "none (why)"}))
    assert _kept_learning(again, plan) == "none (why)"
    assert _kept_learning(anew, plan) is None


def test_under_autocast_the_stream_the_norms_and_the_head_stay_float32() -> None:
    body = dissect(tiny_model("llama"))
    light = dataclasses.replace(body, autocast=torch.bfloat16)
    ids = random_ids(2, 16)
    kinds: list[torch.dtype] = []
    handle = body.submodule(0, "mlp.down_proj").register_forward_hook(
        lambda _m, _i, out: kinds.append(out.dtype)
    )
    with torch.no_grad():
        hidden, arguments = light.prepare(ids)
        ours = light.run_blocks(range(len(light)), hidden, arguments)
        exact = body.run_blocks(range(len(body)), hidden, arguments)
        logits = light.logits(light.normed(ours))
    handle.remove()
    assert kinds[-2:] == [torch.bfloat16, torch.float32]
    assert ours.dtype == logits.dtype == torch.float32
    assert not torch.equal(ours, exact)
    assert (ours - exact).norm() < 0.05 * exact.norm()
