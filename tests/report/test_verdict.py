from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tests.report.sample import (
    BENCH,
    DENSE,
    HEALED,
    SPEEDUP,
    artifact,
    parts,
    quality,
    ratio,
    sample_report,
    with_decode,
)


def said(**changes: Any) -> str:
    """The verdict of the sample after `changes` to its parts; quality and artifacts are added."""
    if "decode" in changes:
        changes["bench"] = with_decode(changes.pop("decode"))
    quality = parts()["quality"] | changes.pop("quality", {})
    artifacts = (*parts()["artifacts"], *changes.pop("artifacts", ()))
    return sample_report(quality=quality, artifacts=artifacts, **changes).verdict


def test_the_plain_case_in_one_sentence():
    assert said().startswith(
        "Blocks 12-17 (6 of 30) are gone: decode is 1.16x faster (1.12 to 1.20, 97 %, n 6; "
        "the bytes saved allow 1.15x), perplexity 23.1 -> 29.8 (1.29x); at equal size a harder "
        "quantization of the dense model was not measured. Against the dense file of the same type "
        "alone, tiny-healed serves bytes (1.19x), decode (1.16x, "
    )


def test_an_interval_that_holds_one_is_not_faster():
    text = said(decode=ratio(1.04, 0.97, 1.09, 1.15))
    assert (
        "decode is not measurably faster (1.04x, 0.97 to 1.09, 97 %, n 6; the bytes saved allow"
        in text
    )
    assert "decode is not measurably faster" in said(decode=ratio(1.05, 1.0, 1.09, 1.15))
    assert "1.05x faster" in said(decode=ratio(1.05, 1.01, 1.09, 1.15))


def test_slower_is_called_slower():
    assert "decode is slower, 0.93x of the dense speed" in said(decode=ratio(0.93, 0.9, 0.97, 1.1))


def test_pitfall_21_more_than_the_bytes_saved_is_suspect():
    assert "more than the bytes saved explain" in said(decode=ratio(1.4, 1.35, 1.45, 1.15))
    assert "more than the bytes saved" not in said(decode=ratio(1.18, 1.12, 1.24, 1.15))


def test_pitfall_21_a_small_model_is_suspect_only_above_all_its_bounds():
    """1.22x (1.20 to 1.27) was called more than the bytes saved explain (1.16): 30 of 24 blocks,
    in a model that is not bound by memory, allow 1.25x."""
    bounds = {"bytes": 1.16, "operations": 1.19, "blocks": 1.25}
    text = said(decode=replace(ratio(1.22, 1.20, 1.27, 1.16), bounds=bounds))
    assert "the bytes saved allow 1.16x, the blocks saved 1.25x)" in text
    assert "saved explain" not in text
    text = said(decode=replace(ratio(1.32, 1.30, 1.35, 1.16), bounds=bounds))
    assert "more than the bytes and blocks saved explain, so measure again" in text
    text = said(decode=replace(ratio(1.14, 1.10, 1.15, 1.16), bounds=bounds))
    assert "the blocks saved" not in text
    text = said(decode=replace(ratio(1.32, 1.30, 1.35, 1.16), bounds=bounds | {"cache": 1.33}))
    assert "than the bytes and blocks saved explain; the processor's last-level cache can" in text
    assert "measure again" not in text


def test_fewer_than_six_rounds_claim_nothing():
    few = replace(SPEEDUP, n=5, confidence=0.9375)
    text = said(bench=replace(BENCH, speedup=(few,)))
    assert "decode was 1.16x (1.12 to 1.20, 94 %, n 5; the bytes saved allow 1.15x), of too" in text
    assert "faster (" not in text


def test_a_single_round_proves_nothing():
    one = replace(SPEEDUP, n=1, confidence=0.0)
    text = said(bench=replace(BENCH, speedup=(one,)))
    assert "in a single round, which proves nothing" in text


def test_a_heavy_loss_is_called_heavy():
    assert "23.1 -> 46.1 (2.00x);" in said(quality={"tiny-healed": quality(46.1, 0.9, 0.5)})
    text = said(quality={"tiny-healed": quality(52.0, 0.9, 0.5)})
    assert "perplexity 23.1 -> 52.0 (2.25x), a heavy loss of quality" in text


def test_what_was_not_measured_is_said():
    text = said(bench=None)
    assert "the speed was not measured, perplexity 23.1 -> 29.8" in text
    text = said(quality={"tiny-healed": quality(None, 0.3, 0.7)})
    assert "perplexity before quantization 20.0 -> 26.0 (1.30x)" in text
    nothing = sample_report(quality={}, bench=None).verdict
    assert "the loss of quality was not measured" in nothing


def test_pitfall_23_a_dense_file_of_equal_size_is_the_rival():
    rival = artifact("tiny-q3", "dense", 84 * 2**20, target="gguf-q3_k_m")
    better = said(artifacts=[rival], quality={"tiny-q3": quality(25.0, 0.2, 0.8)})
    assert (
        "at equal size the dense model as gguf-q3_k_m is better (perplexity 25.0 in 84.0 MiB)."
        in better
    )
    worse = said(artifacts=[rival], quality={"tiny-q3": quality(31.0, 0.4, 0.7)})
    assert "as gguf-q3_k_m is no better (perplexity 31.0" in worse
    # Larger than the pruned file, or never evaluated: no rival.
    large = artifact("tiny-q3", "dense", 90 * 2**20, target="gguf-q3_k_m")
    assert "was not measured" in said(artifacts=[large], quality={"tiny-q3": quality(25.0, 0.2, 1)})
    assert "was not measured" in said(artifacts=[rival])


def test_an_unverified_file_and_an_uncut_model_are_named():
    unverified = sample_report(artifacts=[DENSE, replace(HEALED, verified=False)])
    assert unverified.verdict.endswith("; tiny-healed did not pass verification.")
    assert sample_report(search=None).verdict.startswith("No block was cut: ")


def test_the_ratio_of_perplexities_has_its_paired_interval():
    """The sequences differ widely, their differences hardly: the ratio is known well."""
    dense = (2.5, 3.4, 3.0, 2.1, 3.9, 2.8)
    gaps = (0.2, 0.3, 0.25, 0.26, 0.24, 0.25)
    healed = tuple(nll + gap for nll, gap in zip(dense, gaps, strict=True))

    def kept(count: int) -> dict[str, Any]:
        known = parts()["quality"]
        return {
            DENSE.name: replace(known[DENSE.name], sequence_nll=dense[:count]),
            HEALED.name: replace(known[HEALED.name], sequence_nll=healed[:count]),
        }

    found = re.search(
        r"\(1\.29x, ([\d.]+) to ([\d.]+) over the same 6 sequences\)", said(quality=kept(6))
    )
    assert found is not None
    assert 1.2 < float(found[1]) < 1.284 < float(found[2]) < 1.37
    assert "over the same" not in said(quality=kept(3))  # too few for an interval
