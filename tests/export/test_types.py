"""The type of every tensor, foretold; and types by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clp_edge
from clp_edge.errors import PreflightError, UsageError
from clp_edge.export import ExportOptions, export, format_of, plan, resolve
from clp_edge.export.gguf import families, tokenizer
from clp_edge.export.gguf.imatrix import Importance
from clp_edge.export.gguf.mix import Traits, predict, taken_for_70b
from clp_edge.export.gguf.plan import traits_of
from clp_edge.export.gguf.quantize import census, quantize
from clp_edge.export.gguf.targets import FILE_TYPES, TARGETS, uses_matrix
from clp_edge.export.gguf.tensor_types import parse
from clp_edge.export.gguf.writer import write_f16
from clp_edge.progress import silent
from tests.export import dry_run
from tests.export.models import tiny_folder

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32}
METADATA = {"segment": "1-2", "blocks_before": 20, "share": 0.5, "odd": True}


def write(folder: Path, config: Any, hf: Any, path: Path) -> Path:
    write_f16(
        folder,
        path,
        config=config,
        tokenizer_entries=tokenizer.gguf_entries(config, hf, None),
        metadata={"version": clp_edge.__version__, **METADATA},
    )
    return path


def uniform(config: Any) -> Importance:
    rows = [row for row in families.tensors(config) if len(row.shape) > 1]
    return Importance({r.gguf_name: np.ones(r.shape[-1], np.float32) for r in rows}, 1)


SLOW = ("IQ1_S", "IQ1_M", "IQ2_S", "IQ2_M", "IQ3_XXS")
"""llama.cpp builds a table for these that takes up to 17 seconds; the dry run does without."""
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
ROWS = [
    ("llama", 17, {**HEADS, **WIDE}),
    ("llama", 80, {"num_attention_heads": 8, "num_key_value_heads": 4, **WIDE}),
    ("llama", 9, {"hidden_size": 192, "head_dim": 64, "tie_word_embeddings": True}),
    ("phi3", 9, {"hidden_size": 256, "intermediate_size": 512}),
    ("gemma2", 9, {"tie_word_embeddings": True}),
]


@pytest.mark.llama
@pytest.mark.parametrize(("model_type", "blocks", "changes"), ROWS)
@pytest.mark.parametrize("matrix", [False, True])
def test_pitfall_11_the_types_are_those_of_llama_cpps_own_dry_run(
    tmp_path, model_type, blocks, changes, matrix
):
    folder, model, hf = tiny_folder(tmp_path / "m", model_type=model_type, blocks=blocks, **changes)
    config = model.config
    source = write(folder, config, hf, tmp_path / "f16.gguf")
    widths = {r.gguf_name: r.shape[-1] for r in families.tensors(config) if len(r.shape) > 1}
    weights = tmp_path / "matrix.npz"
    np.savez(weights, **uniform(config).columns)
    numbers = [FILE_TYPES[target.quantization] for target in TARGETS[1:]]
    found = dry_run.types(source, numbers, weights if matrix else None)
    for target in TARGETS[1:]:
        of = traits_of(config, resolve("q8_0"), calibrated=False)
        of = replace(of, matrix=matrix)
        said = found[FILE_TYPES[target.quantization]]
        assert set(widths) <= set(said)
        for name, width in widths.items():
            kind = predict(target.quantization, name, width, of)
            assert said[name] == kind, (target.name, name)


@pytest.mark.llama
def test_every_file_has_the_foretold_size(tmp_path):
    """To the byte, with the keys, with the importance matrix where it is used."""
    folder, model, hf = tiny_folder(tmp_path / "m", blocks=1, **HEADS, **WIDE)
    config = model.config
    source = write(folder, config, hf, tmp_path / "f16.gguf")
    assert plan(config, hf, TARGETS[0], metadata=METADATA).predicted_bytes == source.stat().st_size
    for target in TARGETS[1:]:
        if target.quantization in SLOW:
            continue
        out = tmp_path / "made.gguf"
        given = uniform(config) if uses_matrix(target) else None
        quantize(source, out, target, threads=2, importance=given)
        found = census(out, target, matrix=given is not None)
        planned = plan(config, hf, target, metadata=METADATA, calibrated=True)
        assert planned.predicted_bytes == out.stat().st_size, target.name
        assert planned.fallback_tensors == len(found.fallback) == 0, target.name


def test_pitfall_15b_eighty_blocks_are_taken_for_70b():
    """There llama.cpp gives the values more bits; a cut to 80 blocks brings a model to it."""
    plain = Traits(blocks=80, grouped=8, tied=False)
    large = Traits(blocks=80, grouped=8, tied=False, large=True)
    name = "blk.40.attn_v.weight"
    assert predict("Q4_K_S", name, 256, plain) == "Q4_K"
    assert predict("Q4_K_S", name, 256, large) == "Q5_K"
    assert taken_for_70b("llama", 80, 64, 8)
    assert not taken_for_70b("llama", 80, 64, 64)
    assert not taken_for_70b("llama", 79, 64, 8)
    assert taken_for_70b("qwen2", 80, 64, 64)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ffn_down", "no REGEX=TYPE"),
        ("=q6_k", "no REGEX=TYPE"),
        ("ffn_down=", "no REGEX=TYPE"),
        ("(=q6_k", "no regular expression"),
        ("ffn_down=q4_k_m", "did you mean Q4_K"),
        ("ffn_down=%%%", "no type of a tensor; known are F32"),
    ],
)
def test_a_bad_tensor_type_is_refused(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse(text)
    assert caught.value.exit_code == 2


def test_a_tensor_type_is_any_case_and_the_last_sign_counts():
    assert parse("a=b=q8_0") == ("a=b", "Q8_0")


@pytest.mark.parametrize(
    ("options", "target", "said"),
    [
        (ExportOptions((("ffn_dwn", "Q8_0"),)), "q4_0", "no matrix has a name that 'ffn_dwn'"),
        (ExportOptions((("ffn_down", "Q9"),)), "q4_0", "'Q9' is no type"),
        (ExportOptions((("ffn_down", "Q8_0"),)), "bf16", "have no effect"),
        (ExportOptions((("ffn_down", "IQ2_XS"),)), "q4_0", r"ffn_down\.weight needs an importance"),
        (ExportOptions(careful_blocks=(1, 7)), "q4_0", "block 7 is not there"),
    ],
)
def test_options_that_do_not_fit_are_problems_of_the_plan(tiny, options, target, said):
    found = plan(tiny.config, tiny.hf, resolve(target), options=options).problems
    assert len(found) == 1
    with pytest.raises(UsageError, match=said):
        raise found[0]


def test_onnx_refuses_them(tiny, tmp_path):
    options = ExportOptions(careful_head=True)
    found = plan(tiny.config, tiny.hf, resolve("onnx-int4"), options=options).problems
    assert any("ONNX targets know no types" in str(problem) for problem in found)
    with pytest.raises(UsageError, match="ONNX targets know no types"):
        format_of(resolve("onnx-int4")).open(tiny.folder, metadata={}, threads=1, options=options)


@pytest.mark.llama
def test_types_by_hand_and_care_are_in_the_file(tmp_path):
    """The rest of the mix stays as it is, though llama.cpp counts the values that it decides on."""
    folder, model, hf = tiny_folder(tmp_path / "m", blocks=9, **HEADS, **WIDE)
    target = resolve("q4_k_m")
    options = ExportOptions(
        tensor_types=(parse(r"blk\.[01]\.attn_v=q8_0"), parse("attn_v=f16"), parse("ffn_up=q5_1")),
        careful_blocks=(3, 4),
        careful_head=True,
    )
    made = export(
        folder,
        target,
        tmp_path / "m.gguf",
        metadata=METADATA,
        threads=2,
        progress=silent,
        options=options,
    )
    types = census(made.path, target).types
    assert [types[f"blk.{i}.attn_v.weight"] for i in range(3)] == ["Q8_0", "Q8_0", "F16"]
    assert {types[f"blk.{i}.ffn_up.weight"] for i in range(9)} == {"Q5_1"}
    assert [types[f"blk.{i}.attn_q.weight"] for i in (2, 3, 4, 5)] == [
        "Q4_K", "Q6_K", "Q6_K", "Q4_K",
    ]  # fmt: skip
    assert types["output.weight"] == "Q8_0"
    assert types["token_embd.weight"] == "Q4_K"
    plain = Traits(blocks=9, grouped=4, tied=False)
    downs = [i for i in range(9) if i not in (3, 4)]
    assert [types[f"blk.{i}.ffn_down.weight"] for i in downs] == [
        predict("Q4_K_M", f"blk.{i}.ffn_down.weight", 512, plain) for i in downs
    ]
    planned = plan(model.config, hf, target, metadata=METADATA, options=options)
    assert planned.predicted_bytes == made.bytes
    assert made.fallback_tensors == planned.fallback_tensors == 0


@pytest.mark.llama
def test_a_type_by_hand_that_does_not_fit_falls_back_and_is_counted(tmp_path):
    folder, model, hf = tiny_folder(tmp_path / "m", hidden_size=192, head_dim=64)
    options = ExportOptions(tensor_types=(("attn_q", "Q6_K"),))
    planned = plan(model.config, hf, resolve("q4_0"), options=options, metadata={})
    made = export(
        folder,
        resolve("q4_0"),
        tmp_path / "m.gguf",
        metadata={},
        threads=2,
        progress=silent,
        options=options,
    )
    assert made.fallback_tensors == planned.fallback_tensors == 3
    assert made.bytes == planned.predicted_bytes


def test_a_bad_option_writes_nothing(tiny, tmp_path):
    with pytest.raises(PreflightError, match="no matrix has a name"):
        export(
            tiny.folder,
            resolve("q4_0"),
            tmp_path / "out" / "m.gguf",
            metadata={},
            threads=1,
            progress=silent,
            options=ExportOptions(tensor_types=(("nothing", "Q8_0"),)),
        )
    assert not (tmp_path / "out").exists()
