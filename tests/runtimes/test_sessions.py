"""A session answers as torch does, whatever the runtime prints, and says clearly how it died."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clp_edge.errors import RuntimeDiedError, UsageError
from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf.quantize import quantize
from clp_edge.export.gguf.writer import write_f16
from clp_edge.export.targets import resolve
from clp_edge.runtimes import (
    ChildDiedError,
    llama_cpp_available,
    open_artifact,
    patience_s,
    run_in_child,
)
from clp_edge.runtimes import llama as llama_module
from clp_edge.runtimes import process as process_module
from clp_edge.runtimes import session as session_module
from clp_edge.runtimes.process import ANSWER_S, ChildProcess
from tests.export.models import tiny_f16_file, tiny_folder

pytestmark = pytest.mark.llama


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, model, tokenizer, F16 file) of a tiny Llama."""
    return tiny_f16_file(tmp_path_factory.mktemp("runtime") / "llama", blocks=2)


@pytest.fixture(scope="module")
def session(made):
    with open_artifact(made[3], threads=2, context=256, kv_type="f32") as opened:
        yield opened


def test_info_and_tokens(made, session):
    _, model, hf, path = made
    info = session.info
    assert (info.runtime, info.architecture, info.blocks) == ("llama.cpp", "llama", 2)
    assert (info.context_length, info.vocabulary) == (512, model.config.vocab_size)
    assert info.bytes == path.stat().st_size
    assert info.load_ms > 0
    text = "naïve 12 <|done|>"
    ids = hf.encode(text)
    assert session.tokenize(text) == ids
    assert session.tokenize("<|done|>", parse_special=False) != session.tokenize("<|done|>")
    assert session.detokenize(ids) == text
    assert {0, 2} <= session.end_tokens()  # <|endoftext|> is EOS, <|done|> ends a turn


def test_logits_of_every_position_in_any_chunking(made, session):
    _, model, hf, path = made
    ids = hf.encode("The harbour froze early that winter, and by the second week")
    expected = model(torch.tensor([ids])).logits[0].numpy()
    whole = session.logits(ids)
    assert whole.shape == expected.shape
    assert np.abs(whole - expected).max() < 0.03 * expected.std()
    with open_artifact(path, threads=2, context=256, kv_type="f32", batch=7) as chunked:
        parts = list(chunked.iter_logits(ids))
    assert max(len(part) for part in parts) == 7
    assert np.abs(np.concatenate(parts) - whole).max() < 0.01 * expected.std()


def test_generation_is_greedy_and_stops(made, session):
    _, _, hf, _ = made
    prompt = hf.encode("The harbour")
    fresh = session.generate(prompt, 8)
    rows = session.logits([*prompt, *fresh])[len(prompt) - 1 : -1]
    assert [int(row.argmax()) for row in rows] == fresh
    first = fresh.index(fresh[3])
    assert session.generate(prompt, 8, stop={fresh[3]}) == fresh[:first]


@pytest.mark.parametrize("end", [0, 2])
def test_generation_ends_at_the_files_own_end_tokens(tmp_path, end):
    """A model that says nothing but `end` (EOS, or the end of a chat turn) says nothing."""
    folder, model, hf = tiny_folder(tmp_path / "ends", blocks=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[end] = 1.0
    model.save_pretrained(folder)
    entries = tokenizers.entries(model.config, hf)
    path = tmp_path / "ends.gguf"
    write_f16(folder, path, config=model.config, tokenizer_entries=entries, metadata={})
    with open_artifact(path, threads=1, context=64) as opened:
        assert int(opened.logits([5])[0].argmax()) == end
        assert opened.generate([5], 4) == []


def test_time_once_counts_and_refuses(session):
    timing = session.time_once(prompt=32, generate=4, depth=16, seed=1)
    assert (timing.prompt, timing.generate, timing.depth) == (32, 4, 16)
    assert 0 < timing.prefill_s * 1e3 <= timing.ttft_ms
    assert timing.prefill_tps == pytest.approx(32 / timing.prefill_s)
    assert timing.decode_tps == pytest.approx(4 / timing.decode_s)
    only = session.time_once(prompt=0, generate=2)
    assert math.isnan(only.prefill_tps)
    assert math.isnan(only.ttft_ms)
    with pytest.raises(UsageError, match="do not fit the open context of 256"):
        session.time_once(prompt=250, generate=0, depth=16)
    with pytest.raises(UsageError, match="cannot time"):
        session.time_once(prompt=0, generate=0)
    with pytest.raises(UsageError, match="outside the vocabulary"):
        session.logits([10**6])
    assert session.peak_rss_mib() > 10


def test_the_torch_runtime_gives_the_same_answers(made, session):
    folder, model, hf, _ = made
    ids = hf.encode("In 1893 it had held for 47 days")
    with open_artifact(folder, threads=1, context=64, batch=5) as opened:
        assert (opened.info.runtime, opened.info.blocks) == ("torch", 2)
        assert opened.tokenize("wörld 12") == session.tokenize("wörld 12")
        expected = model(torch.tensor([ids])).logits[0].numpy()
        assert np.abs(opened.logits(ids) - expected).max() < 1e-3
        assert opened.generate(ids, 6) == session.generate(ids, 6)
        timing = opened.time_once(prompt=8, generate=2, depth=4)
        assert timing.prefill_s > 0
        assert timing.decode_s > 0


def test_pitfall_14_a_killed_child_is_a_clear_error(made):
    opened = open_artifact(made[3], threads=1, context=64)
    os.kill(opened.pid, signal.SIGKILL)
    with pytest.raises(ChildDiedError, match=r"SIGKILL.*out of memory") as caught:
        opened.tokenize("hello")
    assert caught.value.signal_name == "SIGKILL"
    assert caught.value.log_lines
    with pytest.raises(RuntimeDiedError, match="session is closed"):
        opened.tokenize("hello")


def test_pitfall_14_an_abort_is_named():
    with pytest.raises(ChildDiedError, match="ended by SIGABRT") as caught:
        run_in_child("os:abort", what="a runtime")
    assert isinstance(caught.value, RuntimeDiedError)


def test_pitfall_14_a_truncated_file_is_a_clear_error(made, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(made[3].read_bytes()[: made[3].stat().st_size // 2])
    with pytest.raises(RuntimeDiedError, match=r"cannot load.*(corrupted|bounds)"):
        open_artifact(broken, threads=1)


def test_what_a_runtime_prints_cannot_break_the_protocol():
    assert run_in_child("os:system", what="a loud one", command="yes | head -c 1000000") == 0


def test_a_silent_child_is_stopped():
    with pytest.raises(ChildDiedError, match="a slow one, call: hung, no answer within 1 s"):
        run_in_child("subprocess:call", what="a slow one", timeout_s=1.0, args=["sleep", "20"])


def test_every_answer_is_awaited_for_minutes_and_longer_for_large_files(tmp_path, monkeypatch):
    awaited = []

    class Watched(ChildProcess):
        def __init__(self, what, *, timeout_s=ANSWER_S, environment=None, cpus=None):
            awaited.append(timeout_s)
            raise ChildDiedError("stop here", log_lines=[])

    assert patience_s(0) == ANSWER_S == 300.0
    assert patience_s(4e9) == pytest.approx(700.0)
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(2_000_000_000)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for module in (session_module, process_module):
        monkeypatch.setattr(module, "ChildProcess", Watched)
    for call in (
        lambda: open_artifact(path),
        lambda: open_artifact(folder),
        lambda: open_artifact(path, timeout_s=7.0),
        lambda: run_in_child("os:getcwd", what="x"),
    ):
        with pytest.raises(ChildDiedError):
            call()
    assert awaited == [pytest.approx(500.0), pytest.approx(300.0), 7.0, 300.0]


def test_errors_keep_their_class_or_name_it():
    with pytest.raises(UsageError, match="did you mean gguf-q4_0"):
        run_in_child("clp_edge.export.targets:resolve", what="x", name="gguf-q4_00")
    with pytest.raises(RuntimeDiedError, match="JSONDecodeError"):
        run_in_child("json:loads", what="x", s="{")


def test_peak_memory_is_the_childs_own():
    ballast = np.ones(60_000_000)  # 458 MiB in the parent
    peak = run_in_child("clp_edge.runtimes.memory:peak_rss_mib", what="x")
    assert ballast[-1] == 1.0
    assert 5 < peak < 300


def test_the_parent_never_loads_llama_cpp():
    code = (
        "import sys; from clp_edge.runtimes import llama_cpp_available as a; ok, why = a();"
        "assert ok, why; assert 'llama_cpp' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_availability_says_why_not(tmp_path, monkeypatch):
    ok, reason = llama_cpp_available()
    assert ok
    assert "llama-cpp-python" in reason
    assert "backend" in reason
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no module named llama_cpp')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ok, reason = llama_cpp_available()
    assert not ok
    assert "pip install 'clp-edge[gguf]'" in reason


@pytest.mark.parametrize("name", ["missing.gguf", "text.gguf", "folder"])
def test_what_nothing_opens_is_refused(tmp_path: Path, name):
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"give a .gguf file or a Hugging Face folder"):
        open_artifact(tmp_path / name)


@pytest.mark.parametrize(("said", "extra"), [("AVX512 = 1 | AMX_INT8 = 1", False), ("AVX2", True)])
def test_amx_kernels_that_kill_the_process_are_not_used(said: str, extra: bool) -> None:
    """Built by gcc on a processor with AMX, the first prompt died of SIGSEGV or SIGILL."""

    class Library:
        def llama_model_default_params(self) -> SimpleNamespace:
            return SimpleNamespace(use_extra_bufts=True)

        def llama_print_system_info(self) -> bytes:
            return said.encode()

    assert llama_module.model_params(Library()).use_extra_bufts is extra


def test_a_quantized_file_takes_a_prompt(made, tmp_path: Path) -> None:
    """Q4_1 and Q8_0 are what AMX, where there is one, would take."""
    for kind in ("gguf-q4_1", "gguf-q8_0"):
        path = tmp_path / f"{kind}.gguf"
        quantize(made[3], path, resolve(kind), threads=1)
        with open_artifact(path, threads=2, context=128) as opened:
            assert np.isfinite(opened.logits(list(range(5, 69)))).all()
