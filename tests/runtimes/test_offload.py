"""--gpu-layers: what fits is offloaded, and what does not ends on the processor with the reason."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clp_edge.errors import ClpEdgeError, RuntimeDiedError, UsageError
from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf.writer import write_f16
from clp_edge.runtimes import ArtifactInfo, open_artifact, parse_gpu_layers
from clp_edge.runtimes import session as session_module
from clp_edge.runtimes.offload import (
    DRIVER_BYTES,
    MIB,
    NO_BACKEND,
    NO_DEVICE,
    USABLE,
    Gpu,
    Needs,
    plan_offload,
    read_needs,
)
from clp_edge.runtimes.process import ChildDiedError
from tests.bench.test_ceiling import write_gguf
from tests.export.models import tiny_folder


@pytest.fixture(scope="module")
def tiny_llama_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two blocks as an F16 file."""
    folder, model, hf = tiny_folder(tmp_path_factory.mktemp("offload") / "llama", blocks=2)
    path = folder.parent / "model.gguf"
    entries = tokenizers.entries(model.config, hf)
    write_f16(folder, path, config=model.config, tokenizer_entries=entries, metadata={})
    return path


NEEDS = Needs(blocks=(100 * MIB,) * 4, head=50 * MIB, compute=30 * MIB)


def gpu(room: float) -> Gpu:
    """A GPU that leaves exactly so many bytes for a model."""
    free = -int(-(room + DRIVER_BYTES) // USABLE)
    return Gpu("CUDA", "a laptop GPU", free, 6 << 30)


@pytest.mark.parametrize(
    ("room_mib", "layers"),
    [
        (1000, 5),
        (480, 5),  # four blocks, the head, the buffers: not a byte less
        (479, 4),
        (230, 2),  # two blocks without the head need more than one with it
        (229, 1),
        (129, 0),
        (0, 0),
    ],
)
def test_auto_takes_what_the_free_memory_holds(room_mib: int, layers: int) -> None:
    plan = plan_offload(NEEDS, gpu(room_mib * MIB), "auto")
    assert (plan.layers, plan.of) == (layers, 5)
    assert plan.ladder[0] == layers
    assert plan.ladder[-1] == 0
    assert "a laptop GPU are free" in plan.reason
    assert "all 5 layers need 480 MiB" in plan.reason


def test_a_share_leaves_room_for_the_files_that_open_beside_it() -> None:
    whole = plan_offload(NEEDS, gpu(960 * MIB), "auto")
    half = plan_offload(NEEDS, gpu(960 * MIB), "auto", share=0.5)
    third = plan_offload(NEEDS, gpu(960 * MIB), "auto", share=0.33)
    assert (whole.layers, half.layers) == (5, 5)
    assert third.layers == 2
    assert "33% of it is for this file" in third.reason


def test_a_number_is_taken_as_it_is_and_falls_to_nothing() -> None:
    assert plan_offload(NEEDS, gpu(0), 3).ladder == (3, 0)
    assert plan_offload(NEEDS, gpu(0), 99).layers == 5
    for why in (NO_BACKEND, NO_DEVICE):
        plan = plan_offload(NEEDS, why, 3)
        assert (plan.layers, plan.reason) == (0, why)
    assert plan_offload(NEEDS, gpu(1000 * MIB), 0).layers == 0


def test_needs_come_from_the_header(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", 5)
    near = read_needs(path, context=100, kv_type="f16", batch=32)
    far = read_needs(path, context=300, kv_type="f16", batch=32)
    assert near.layers == 6
    cache = (far.blocks[0] - near.blocks[0]) / 200  # bytes of one position in one block
    wide = read_needs(path, context=300, kv_type="f32", batch=32)
    assert cache > 0
    assert wide.blocks[0] - far.blocks[0] == 300 * cache
    # The scores of attention are stored only without flash attention, which f32 turns off.
    assert wide.compute > far.compute == near.compute
    bytes_of_blocks = sum(near.blocks) - 5 * 100 * cache
    assert 0 < bytes_of_blocks + near.head < path.stat().st_size
    (tmp_path / "x.gguf").write_bytes(b"no model" * 9)
    with pytest.raises(ClpEdgeError, match="no GGUF"):
        read_needs(tmp_path / "x.gguf", context=8, kv_type="f16", batch=8)


@pytest.mark.parametrize("text", ["-1", "all", "", "1.5"])
def test_what_gpu_layers_does_not_take(text: str) -> None:
    assert parse_gpu_layers("auto") == "auto"
    assert parse_gpu_layers("7") == 7
    with pytest.raises(UsageError, match=r"--gpu-layers.*give auto"):
        parse_gpu_layers(text)


INFO = ArtifactInfo("llama.cpp", "1", "CUDA", "llama", 5, 512, 320, 1.0, 1)


class FakeChild:
    """A runtime on a GPU that has no room for more than `holds` layers, whatever it says."""

    says: Gpu | str = gpu(1000 * MIB)
    holds = 99
    dies_of: type[ClpEdgeError] = ChildDiedError
    made: list[FakeChild]

    def __init__(self, what: str, *, timeout_s: float, cpus: Any = None) -> None:
        self.pid, self.closed = os.getpid(), False
        type(self).made.append(self)

    def ask(self, verb: str, name: str, *rest: Any) -> Any:
        if verb == "run":
            return self.says
        given = rest[0]
        if given["gpu_layers"] > self.holds:
            if self.dies_of is ChildDiedError:
                raise ChildDiedError("out of GPU memory", signal_name="SIGABRT", log_lines=[])
            raise self.dies_of("stop")
        count = given["gpu_layers"]
        backend = "CUDA" if count else "CPU"
        return replace(INFO, backend=backend, gpu_layers=count, backend_reason=given["reason"])

    def close(self) -> None:
        self.closed = True


def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, **how: Any) -> tuple:
    kind = type("Child", (FakeChild,), {**how, "made": []})
    monkeypatch.setattr(session_module, "ChildProcess", kind)
    path = tmp_path / "m.gguf"
    path = path if path.exists() else write_gguf(path, 5)
    return open_artifact(path, context=64, gpu_layers=asked), kind.made


def test_all_layers_go_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, made = opened(tmp_path, monkeypatch, "auto")
    assert (session.info.backend, session.info.gpu_layers) == ("CUDA", 6)
    assert "a laptop GPU are free" in session.info.backend_reason
    assert len(made) == 1


@pytest.mark.parametrize(("holds", "layers"), [(3, 3), (2, 0), (0, 0)])
def test_a_load_that_dies_is_tried_with_less_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: int, layers: int
) -> None:
    session, made = opened(tmp_path, monkeypatch, "auto", holds=holds)
    assert session.info.gpu_layers == layers
    assert "6 layers did not load (out of GPU memory)" in session.info.backend_reason
    assert all(child.closed for child in made[:-1])
    assert not made[-1].closed


def test_a_number_that_does_not_load_falls_back_to_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = opened(tmp_path, monkeypatch, 4, holds=3)
    assert (session.info.backend, session.info.gpu_layers) == ("CPU", 0)
    assert "4 layers did not load" in session.info.backend_reason


def test_what_is_no_matter_of_the_gpu_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="stop"):
        opened(tmp_path, monkeypatch, "auto", holds=0, dies_of=UsageError)
    with pytest.raises(RuntimeDiedError):
        opened(tmp_path, monkeypatch, "auto", holds=-1)
    session, made = opened(tmp_path, monkeypatch, 5, says=NO_BACKEND)
    assert (session.info.gpu_layers, session.info.backend_reason) == (0, NO_BACKEND)
    assert len(made) == 1


@pytest.mark.llama
def test_this_build_says_where_it_computes(tmp_path: Path, tiny_llama_gguf: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from clp_edge.runtimes.llama import backend_devices

    assert all(0 < free <= total for _, _, free, total in backend_devices())
    with open_artifact(tiny_llama_gguf, threads=1, context=64, gpu_layers=2) as session:
        assert session.info.gpu_layers is not None
        if not llama_cpp.llama_supports_gpu_offload():
            assert (session.info.backend, session.info.gpu_layers) == ("CPU", 0)
            assert session.info.backend_reason == NO_BACKEND


@pytest.mark.llama
def test_the_child_is_pinned_before_its_runtime_starts_threads(tiny_llama_gguf: Path) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity on this system")
    one = min(os.sched_getaffinity(0))
    with open_artifact(tiny_llama_gguf, threads=2, context=64, cpus=[one]) as session:
        session.time_once(prompt=8, generate=2)
        assert session.cpus == (one,)
        for task in Path(f"/proc/{session.pid}/task").iterdir():
            assert os.sched_getaffinity(int(task.name)) == {one}
    with pytest.raises(UsageError, match="cannot pin to processors 100000"):
        open_artifact(tiny_llama_gguf, cpus=[100_000])
