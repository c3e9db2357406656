"""Names of targets, and what is foretold of each before any work."""

from __future__ import annotations

import pytest

from clp_edge.errors import UsageError
from clp_edge.export import all_targets, resolve


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


def test_onnx_is_not_yet():
    with pytest.raises(UsageError, match="onnx-int4 is not yet written"):
        resolve("onnx-int4")


def test_types_that_need_an_importance_matrix_are_refused():
    with pytest.raises(UsageError, match="importance matrix"):
        resolve("IQ2_XXS")
    assert all(not target.needs_importance_matrix for target in all_targets())


def test_file_types_are_llama_cpps_own_numbers():
    llama_cpp = pytest.importorskip("llama_cpp")
    for target in all_targets():
        number = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{target.quantization}")
        assert number == target.file_type, target.name
