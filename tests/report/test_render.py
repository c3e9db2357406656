from __future__ import annotations

from dataclasses import replace

from clp_edge.records import Report, RungRecord, Span, SummaryRecord
from clp_edge.report import SummaryRow, render_card, render_markdown, summary_table
from clp_edge.report import format as write
from tests.report.sample import (
    DENSE,
    HEAL,
    HEALED,
    MODEL,
    SAMPLE,
    TARGET,
    artifact,
    died,
    parts,
    sample_report,
)


def rows(report: Report) -> dict[tuple[str, str], SummaryRow]:
    return {(row.group, row.label): row for row in summary_table(report)}


def test_the_table_has_each_figure_before_and_after():
    found = rows(sample_report())
    row = found[TARGET, "perplexity"]
    assert (row.before, row.after, row.change) == (
        "23.1 ± 0.60 (n 32)",
        "29.8 ± 0.60 (n 32)",
        "1.29x",
    )
    row = found[TARGET, "KL to dense (nats)"]
    assert (row.before, row.after, row.change) == (
        "0.050 ± 0.010 (n 32)",
        "0.350 ± 0.010 (n 32)",
        "+0.300",
    )
    row = found[TARGET, "top-1 agreement"]
    assert (row.before, row.after, row.change) == ("90.0 %", "72.0 %", "-18.0 points")
    row = found[TARGET, "file size"]
    assert (row.before, row.after, row.change) == ("100.0 MiB", "84.0 MiB", "-16.0 %")
    row = found[TARGET, "decode"]
    assert row.before == "60.0 tok/s (59.0 to 61.0, n 6)"
    assert row.change == "1.16x (1.12 to 1.20, 97 %, n 6; ideal 1.15x)"
    assert found[TARGET, "time to first token"].change == "1.21x (1.19 to 1.23, 97 %, n 6)"
    row = found[TARGET, "peak memory (resident)"]
    assert (row.before, row.after, row.change) == ("120 MiB", "139 MiB", "+16.0 %")
    row = found[TARGET, "energy per token"]
    assert (row.before, row.after, row.change) == ("not measured", "not measured", "")
    assert found[TARGET, "bits per weight"].after == "6.20"
    cut = found["model, before quantization", "perplexity, cut but not healed"]
    assert (cut.before[:4], cut.after[:4], cut.change) == ("20.0", "60.0", "3.00x")


def test_every_label_is_there_even_where_nothing_was_measured():
    found = rows(sample_report(bench=None, quality={}, artifacts=[HEALED]))
    for label in ("perplexity", "decode", "prefill", "time to first token", "energy per token"):
        row = found[TARGET, label]
        assert (row.before, row.after) == ("not measured", "not measured")
    assert found[TARGET, "file size"].before == "not measured"
    assert found[TARGET, "file size"].after == "84.0 MiB"


def test_a_failed_run_is_told_and_not_shown_as_zero():
    report = sample_report(bench=died("llama.cpp died (signal 6)"))
    row = rows(report)[TARGET, "decode"]
    assert (row.after, row.change) == ("not measured", "not measured")
    text = render_markdown(report)
    assert "- tiny-healed was not timed (failed): llama.cpp died (signal 6)" in text


def test_markdown_carries_the_receipts():
    text = render_markdown(sample_report())
    assert text.startswith("# What clp-edge did to Tiny-30\n")
    assert "| decode | 60.0 tok/s (59.0 to 61.0, n 6) |" in text
    # The windows in the order of the criterion; one that was not refitted comes after those.
    assert text.index("| 12-17 | 0.750 | 0.330 |") < text.index("| 13-18 | 0.720 | 0.400 |")
    assert text.index("| 13-18 | 0.720 |") < text.index("| 3-8 | 3.500 | not measured |")
    assert "| tuned | not measured |" in text
    assert "4 threads; batch 1; 3 warm-up rounds, then 6 that count" in text
    assert "16,384 tokens in 32 sequences of 512" in text
    assert "| heal | 60.0 | not measured |" in text
    assert "> upon a | table" in text
    assert "84.0 MiB (88.1 MB)" in text


def test_pitfall_20_the_report_says_which_memory_it_is():
    assert "peak resident set of the process" in render_markdown(sample_report())


def test_pitfall_11_the_true_bits_and_the_fallbacks_are_a_warning():
    fallen_back = replace(HEALED, fallback_tensors=180)
    text = render_markdown(sample_report(artifacts=[DENSE, fallen_back]))
    assert "tiny-healed: 180 tensors are not in the type asked for" in text
    assert "6.20 bits per weight in fact" in text


def test_the_card_says_what_was_done_and_how_to_run_it():
    model = replace(MODEL, base_model="maker/Tiny-30", license="apache-2.0")
    card = render_card(sample_report(model=model, warnings=["the source is under 8 bits"]))
    front, body = card.split("---\n", 2)[1:]
    assert 'base_model: "maker/Tiny-30"' in front
    assert 'license: "apache-2.0"' in front
    assert "- gguf" in front
    assert "Blocks 12-17 (6 of 30) of `models/Tiny-30.gguf`" in body
    assert "24 are left" in body
    assert "Blocks changed (ids of the dense model): 11, 18." in body
    assert 'llama-cli -m gguf/tiny-healed.gguf -p "The capital of France is" -n 64' in body
    assert 'Llama(model_path="gguf/tiny-healed.gguf"' in body
    assert "    clp-edge compress --target gguf-q4\n" in body
    assert "its licence, apache-2.0, applies to this model too" in body
    assert "- the source is under 8 bits" in body


def test_the_card_names_the_rungs_that_stayed():
    rungs = (
        RungRecord("refit", 0.75, 0.33, True, 4.0),
        RungRecord("local", 0.33, 0.36, False, 20.0),
        RungRecord("endpoints", 0.33, 0.27, True, 20.0),
    )
    card = render_card(sample_report(heal=replace(HEAL, rungs=rungs)))
    said = "after the cut 0.750, after the rung `refit` 0.330, after the rung `endpoints` 0.270."
    assert f"KL to the dense model, in nats: {said}" in card
    before_rungs = render_card(sample_report(heal=replace(HEAL, kl_tuned=0.29)))
    assert "after the closed-form refit 0.330, after tuning 0.290." in before_rungs


def test_the_card_owns_up_to_what_it_does_not_know():
    card = render_card(sample_report(heal=None))
    assert "base_model:" not in card
    assert "its licence was not looked up" in card
    assert "It was not healed" in card


def licence_in_card(**said: str | None) -> tuple[list[str], str]:
    """The front matter's lines on the licence, and the paragraph on it."""
    card = render_card(sample_report(model=replace(MODEL, **said)))
    front, body = card.split("---\n", 2)[1:]
    paragraph = body.split("## Licence and base model\n\n")[1].split("\n")[0]
    return [line for line in front.splitlines() if line.startswith("license")], paragraph


def test_a_licence_is_carried_over_as_it_is_stated():
    front, text = licence_in_card(license="mit", license_link=None, license_stated_in="README.md")
    assert front == ['license: "mit"']
    assert "its licence, mit, applies to this model too (read from the source's README.md)" in text
    front, text = licence_in_card(license="llama3", license_link="https://example.org/licence")
    assert front == [
        'license: "other"',
        'license_name: "llama3"',
        'license_link: "https://example.org/licence"',
    ]
    assert "llama3, https://example.org/licence, applies" in text
    front, _ = licence_in_card(license="Apache License", license_link="LICENSE")
    assert front[0] == 'license: "other"'  # a title is no id of the hub's
    assert licence_in_card(license="other")[0] == ['license: "other"']


def test_no_licence_is_claimed_to_be_missing_without_a_look():
    front, text = licence_in_card(license=None)
    assert (front, "state no licence" in text) == ([], True)
    front, text = licence_in_card()
    assert (front, "not looked up" in text) == ([], True)


def test_blocks_are_named_as_people_read_them():
    one = [Span(4, 4)]
    assert write.blocks(one, [4], 12) == "Block 4 (1 of 12)"
    two = [Span(3, 5), Span(9, 9)]
    assert write.blocks(two, [3, 4, 5, 9], 12) == "Blocks 3-5 and 9 (4 of 12)"
    assert write.blocks([], [1, 7, 2, 9], 12) == "Blocks 1-2, 7 and 9 (4 of 12)"


def test_figures_keep_their_units_apart_and_their_places():
    assert (write.mib(92_500_000), write.megabytes(92_500_000)) == ("88.2 MiB", "92.5 MB")
    assert [write.number(v) for v in (0.000312, 0.75, 14.2, 163.0, 1234.5, 0.0)] == [
        "0.000312",
        "0.750",
        "14.2",
        "163",
        "1,234",
        "0",
    ]
    assert [write.perplexity(v) for v in (7.123, 42.81, 1400.4)] == ["7.12", "42.8", "1,400"]
    assert write.table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |"
    assert write.interval(SummaryRecord(5.0, 5.0, 5.0, n=1)) == "5.0 (n 1)"


def test_sanity_stands_in_the_table_where_it_was_asked():
    label = "sanity prompts passed"
    assert not any(name == label for _, name in rows(sample_report()))
    quality = parts()["quality"]
    tasks = {"sanity": {"passed": 2, "total": 4, "answers": []}}
    quality["tiny-healed"] = replace(quality["tiny-healed"], tasks=tasks)
    asked = rows(sample_report(quality=quality))
    found = {key: row for key, row in asked.items() if key[1] == label}
    (row,) = found.values()
    assert (row.before, row.after) == ("not measured", "2 of 4")


def test_a_sample_names_the_file_that_wrote_it():
    sample = replace(SAMPLE, dense_by="tiny-dense", healed_by="tiny-healed")
    text = render_markdown(sample_report(samples=[sample]))
    assert "**Dense** (tiny-dense)" in text
    assert "**Pruned** (tiny-healed)" in text


def test_an_interval_says_where_it_attains_less_than_95_percent():
    seen = SummaryRecord(2.0, 1.0, 3.0, n=6, confidence=0.96875)
    assert write.interval(seen) == "2.0 (1.0 to 3.0, n 6)"
    assert write.interval(replace(seen, n=5, confidence=0.9375)) == "2.0 (1.0 to 3.0, 94 %, n 5)"
    assert write.interval(replace(seen, n=1, confidence=0.0)) == "2.0 (n 1)"


def test_the_card_shows_how_to_run_each_kind_of_artifact() -> None:
    """The snippets themselves are run by tests/export_onnx/test_usage.py."""
    made = artifact("tiny-onnx", "healed", 80 * 2**20, "onnx-int4")
    made = replace(made, path="onnx/tiny.onnx-int4")
    report = sample_report(artifacts=(*parts()["artifacts"], made))
    body = render_card(report)
    assert 'og.Model("onnx/tiny.onnx-int4")' in body
    assert "ollama create" in body
    assert "llama-server -m gguf/tiny-healed.gguf" in body
    assert body.count("llama-cli -m") == 1
