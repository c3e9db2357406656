"""export(): true sizes, one conversion for two targets, and no unverified file under a name."""

from __future__ import annotations

import hashlib
import re

import pytest
from gguf import GGUFReader

from clp_edge.errors import PreflightError, RuntimeDiedError, VerificationError
from clp_edge.export import export, plan, resolve
from clp_edge.export.gguf import exporter, families
from clp_edge.export.gguf.mix import Traits, predict
from clp_edge.export.gguf.quantize import census, quantize
from clp_edge.export.gguf.targets import TARGETS
from clp_edge.progress import silent
from tests.export.models import tiny_folder

pytestmark = pytest.mark.llama


def run(folder, name, destination, **more):
    target = resolve(name) if isinstance(name, str) else name
    arguments = {"metadata": {"segment": "1-2"}, "threads": 2, "progress": silent, **more}
    return export(folder, target, destination, **arguments)


def test_two_targets_convert_once_and_tell_their_true_size(tiny, tmp_path, monkeypatch):
    work, said = tmp_path / "work", []
    first = run(
        tiny.folder,
        "f16",
        tmp_path / "m.F16.gguf",
        workdir=work,
        progress=lambda done, total, note="": said.append((done / total, note)),
    )
    shares = [share for share, _ in said]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    monkeypatch.setattr(exporter, "write_f16", lambda *_, **__: pytest.fail("converted again"))
    second = run(tiny.folder, "gguf-q4", tmp_path / "m.Q4_K_M.gguf", workdir=work)
    for artifact, name in ((first, "gguf-f16"), (second, "gguf-q4_k_m")):
        data = artifact.path.read_bytes()
        assert artifact.target == name
        assert artifact.verified
        assert artifact.bytes == len(data)
        assert artifact.sha256 == hashlib.sha256(data).hexdigest()
        tensors = GGUFReader(artifact.path).tensors
        bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
        assert artifact.bits_per_weight == pytest.approx(bits)
        foretold = plan(tiny.config, tiny.hf, resolve(name), metadata={"segment": "1-2"})
        assert foretold.predicted_bytes == artifact.bytes
        assert foretold.bits_per_weight == pytest.approx(bits, rel=1e-6)
    assert second.name == "m.Q4_K_M"
    assert first.verify["kl"] < second.verify["kl"]
    fields = GGUFReader(second.path).fields
    assert fields["clp_edge.segment"].contents() == "1-2"
    assert fields["general.file_type"].contents() == 15
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.F16.gguf", "m.Q4_K_M.gguf", "work"]
    assert sorted(p.name for p in work.iterdir()) == ["model.F16.gguf", "model.F16.gguf.json"]


def test_a_changed_folder_or_other_metadata_is_converted_again(tiny):
    one = exporter.fingerprint(tiny.folder, {"segment": "1-2"})
    assert one == exporter.fingerprint(tiny.folder, {"segment": "1-2"})
    assert one != exporter.fingerprint(tiny.folder, {"segment": "1-3"})


def test_pitfall_25_a_failed_verification_leaves_no_file_under_the_name(
    tiny, tmp_path, monkeypatch
):
    def damaged(source, destination, target, **how):
        quantize(source, destination, target, **how)
        reader = GGUFReader(destination, "r+")
        reader.tensors[5].data[...] = 1
        reader.data.flush()

    monkeypatch.setattr(exporter, "quantize", damaged)
    final = tmp_path / "m.gguf"
    final.write_text("an older file")
    with pytest.raises(VerificationError, match="from the F16 file's") as caught:
        run(tiny.folder, "q4_0", final)
    assert caught.value.exit_code == 3
    assert final.read_text() == "an older file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "m.gguf.partial"]


def test_pitfall_25_an_interrupted_export_leaves_nothing(tiny, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.folder, "q4_0", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", [False, True])
def test_the_f16_intermediate_is_gone_after_quantizing(tiny, tmp_path, monkeypatch, fails):
    """It is as large as the model: there while the target is quantized from it, and not after."""
    seen = []

    def watched(source, destination, target, **how):
        seen.append((source, source.stat().st_size))
        quantize(source, destination, target, **how)
        if fails:
            raise RuntimeDiedError("quantizing to Q4_0 failed", "see the log")

    monkeypatch.setattr(exporter, "quantize", watched)
    final = tmp_path / "m.gguf"
    if fails:
        with pytest.raises(RuntimeDiedError):
            run(tiny.folder, "q4_0", final)
    else:
        run(tiny.folder, "q4_0", final)
    ((source, size),) = seen
    assert size > 100_000
    assert source.is_relative_to(tmp_path)
    assert not source.parent.exists()
    assert list(tmp_path.iterdir()) == ([] if fails else [final])


def test_problems_come_before_any_work(tmp_path):
    folder, _, _ = tiny_folder(tmp_path / "m", blocks=2, hidden_act="gelu")
    with pytest.raises(PreflightError, match="hidden_act"):
        run(folder, "q4_0", tmp_path / "out" / "m.gguf")
    assert not (tmp_path / "out").exists()


def test_pitfall_10_a_quantizer_that_fails_is_a_clear_error(tmp_path):
    source = tmp_path / "broken.gguf"
    source.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(RuntimeDiedError, match="quantizing to Q4_0"):
        quantize(source, tmp_path / "out.gguf", resolve("q4_0"), threads=1)
    assert not (tmp_path / "out.gguf").exists()


def test_pitfall_11_types_and_fallbacks_are_foretold(tmp_path):
    """Hidden 192 is no multiple of 256: most matrices of a K-quant fall back."""
    folder, model, hf = tiny_folder(
        tmp_path / "m",
        blocks=9,
        hidden_size=192,
        head_dim=64,
        num_attention_heads=8,
        tie_word_embeddings=True,
        intermediate_size=512,
    )
    from clp_edge.export.gguf import tokenizer as tokenizers
    from clp_edge.export.gguf.writer import write_f16

    source = tmp_path / "f16.gguf"
    entries = tokenizers.entries(model.config, hf)
    write_f16(folder, source, config=model.config, tokenizer_entries=entries, metadata={})
    rows = {row.gguf_name: row for row in families.tensors(model.config)}
    of = Traits(blocks=9, grouped=4, tied=True)
    for target in TARGETS:
        if target.needs_importance_matrix or target.quantization == "F16":
            continue
        out = tmp_path / f"{target.quantization}.gguf"
        lines = quantize(source, out, target, threads=2)
        found = census(out, target)
        foretold = {
            name: predict(target.quantization, name, row.shape[-1], of)
            if len(row.shape) > 1
            else "F32"
            for name, row in rows.items()
        }
        assert foretold == found.types, target.name
        planned = plan(model.config, hf, target)
        assert planned.bits_per_weight == pytest.approx(found.bits_per_weight, rel=1e-6)
        assert planned.fallback_tensors == len(found.fallback), target.name
        # IQ4_NL's own rows fit, but its mix has a K-quant for the values.
        matrices = 1 if target.quantization == "IQ4_NL" else 5
        matrices = 0 if re.fullmatch(r"Q\d_[01]|BF16", target.quantization) else matrices
        assert len(found.fallback) == 9 * matrices, target.name
        if matrices:
            # llama.cpp's own count; where the mix is no K-quant, it has the head among them.
            counted = len(found.fallback) + (target.quantization == "IQ4_NL")
            assert f" {counted} of" in lines[-1], target.name
            named = [note for note in planned.notes if " matrices have rows " in note]
            assert len(named) == 1
            assert named[0].startswith(f"{len(found.fallback)} matrices")
            assert found.fallback[0] in named[0]
    # "q4" is really 6 bits here, and a type that fits is smaller: the plan says by how much.
    fits = plan(model.config, hf, resolve("iq4_nl"), calibrated=True)
    for name, better in (("q4_k_m", True), ("q4_0", False), ("iq4_nl", False), ("q6_k", False)):
        notes = plan(model.config, hf, resolve(name), calibrated=True).notes
        assert any("gguf-iq4_nl fits its rows" in note for note in notes) == better, name
        if better:
            assert any(f"({fits.bits_per_weight:.2f} bits per weight)" in note for note in notes)
    # It is the file that is read: one that is not what was asked for says so.
    other = census(tmp_path / "Q8_0.gguf", resolve("q4_0"))
    assert len(other.fallback) == 9 * 7
    assert "token_embd.weight" not in other.fallback  # tied: the head's type is chosen
