"""Names of targets, and what is foretold of each before any work."""

from __future__ import annotations

import pytest

from clp_edge.errors import UsageError
from clp_edge.export import Target, all_targets, format_of, resolve
from clp_edge.export.gguf.targets import FILE_TYPES, TARGETS
from clp_edge.registry import FORMATS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gguf-q4", "Q4_K_M"),
        ("Q4_K_M", "Q4_K_M"),
        ("q4_k_m", "Q4_K_M"),
        ("GGUF-Q8_0", "Q8_0"),
        ("f16", "F16"),
        ("iq4_nl", "IQ4_NL"),
    ],
)
def test_names_and_llama_cpp_types_resolve(name, expected):
    target = resolve(name)
    assert (target.quantization, target.file_suffix, target.format) == (expected, expected, "gguf")


def test_an_unknown_target_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"unknown target 'q4_km'; did you mean gguf-q4_k_m\?"):
        resolve("q4_km")


def test_an_onnx_target_is_a_folder():
    target = resolve("onnx-int4")
    assert (target.format, target.file_name("tiny")) == ("onnx", "tiny.onnx-int4")
    assert resolve("gguf-q4").file_name("tiny") == "tiny.Q4_K_M.gguf"


def test_no_two_targets_share_a_name():
    names = [key for target in all_targets() for key in (target.name, *target.aliases)]
    assert len(set(names)) == len(names)


def test_a_format_joins_with_one_row():
    class Toy:
        def targets(self):
            return (Target("toy-8", ("t8",), "toy", "8", "toy8", "for children", 1.0),)

    with FORMATS.temporarily("toy", Toy(), "a toy"):
        assert resolve("T8").advice == "for children"
        assert format_of(resolve("toy-8")).targets()[0].name == "toy-8"
        assert any(target.name == "toy-8" for target in all_targets())
    with pytest.raises(UsageError, match="unknown target 'toy-8'"):
        resolve("toy-8")


def test_file_types_are_llama_cpps_own_numbers():
    llama_cpp = pytest.importorskip("llama_cpp")
    for target in TARGETS:
        number = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{target.quantization}")
        assert number == FILE_TYPES[target.quantization], target.name
