"""What the reader wants first: what went, what it costs, what it gives, and would we ship it.

"yes" needs every one of: a verified file, quality, speed and the rival of equal size measured; at
most `HEAVY_LOSS` times the perplexity; smaller or faster; and no dense file of that size that is
better. One failure is a "no", one thing unmeasured a "not proven".

>>> headline(report).ship                                                    # doctest: +SKIP
'not proven'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clp_edge.records import QualityRecord, Report
from clp_edge.report import format as write
from clp_edge.report.facts import Pair, model_quality, pairs
from clp_edge.report.judged import quoted, talks
from clp_edge.report.verdict import HEAVY_LOSS, equal_size_rival

Ship = Literal["yes", "no", "not proven"]


@dataclass(frozen=True)
class Headline:
    """Short sentences, without a full stop; `why` belongs to `ship`."""

    ship: Ship
    why: tuple[str, ...]
    went: tuple[str, ...]
    costs: tuple[str, ...]
    gives: tuple[str, ...]


def headline(report: Report) -> Headline:
    """Of the first target."""
    found = pairs(report)
    pair = found[0] if found else None
    no, unknown = _against(report, pair), _unmeasured(report, pair)
    ship: Ship = "no" if no else "not proven" if unknown else "yes"
    return Headline(
        ship,
        tuple(no or unknown or ["measured, and nothing measured speaks against it"]),
        tuple(_went(report)),
        tuple(_costs(report, pair)),
        tuple(_gives(pair)),
    )


def _sides(
    report: Report, pair: Pair | None
) -> tuple[QualityRecord | None, QualityRecord | None, str]:
    """Both sides' quality and where it was taken: of the files, or before quantization."""
    if pair is not None and pair.quality_before is not None and pair.quality_after is not None:
        return pair.quality_before, pair.quality_after, ""
    return (*model_quality(report), " before quantization")


def _ratio(before: QualityRecord | None, after: QualityRecord | None) -> float | None:
    if before is None or after is None or not before.perplexity or after.perplexity is None:
        return None
    return after.perplexity / before.perplexity


def _against(report: Report, pair: Pair | None) -> list[str]:
    said = [f"{one.name} did not pass verification" for one in report.artifacts if not one.verified]
    gate = report.quality_gate
    for name, misses in (gate.misses if gate is not None else {}).items():
        said += [f"the quality asked for is not reached: {name}: {miss}" for miss in misses]
    choice = report.frontier.choice if report.frontier is not None else None
    if choice is not None and not choice.cut:
        said.append(f"--aim {choice.aim} chooses {choice.chosen or 'nothing'}")
    before, after, _ = _sides(report, pair)
    change = _ratio(before, after)
    if change is not None and change > HEAVY_LOSS:
        said.append(f"perplexity is {write.ratio(change)} the dense model's, a heavy loss")
    if pair is None:
        return said
    rival = equal_size_rival(report, pair)
    ours = pair.quality_after.perplexity if pair.quality_after else None
    if rival is not None and ours is not None and rival[0] < ours:
        said.append(
            f"the dense model as {rival[1].target} is better at the same size "
            f"(perplexity {write.perplexity(rival[0])} against {write.perplexity(ours)})"
        )
    smaller = pair.before is None or pair.after.bytes < pair.before.bytes
    faster = pair.speedup is None or pair.speedup.decode.low > 1.0
    if not smaller and not faster:
        said.append("the file is neither smaller nor measurably faster")
    return said


def _unmeasured(report: Report, pair: Pair | None) -> list[str]:
    if pair is None:
        return ["no pruned file for a device was written"]
    said = []
    if pair.quality_before is None or pair.quality_after is None:
        said.append("the quality of the files was not measured")
    if pair.speedup is None:
        said.append("the speed was not measured")
    elif pair.speedup.decode.low <= 1.0:
        said.append("it is not measurably faster")
    if equal_size_rival(report, pair) is None:
        said.append("a harder quantization of the dense model at equal size was not measured")
    return said


def _went(report: Report) -> list[str]:
    found, model = report.search, report.model
    if found is None or not found.dropped:
        return ["No block"]
    said = [write.blocks(found.segments, found.dropped, model.blocks)]
    if model.parameters_after is not None:
        said.append(f"{model.parameters:,} parameters, now {model.parameters_after:,}")
    else:
        said.append(f"of {model.parameters:,} parameters")
    mended = report.heal is not None and report.heal.method != "none"
    said.append(f"chosen by {found.method}, " + ("healed" if mended else "not healed"))
    return said


def _costs(report: Report, pair: Pair | None) -> list[str]:
    before, after, where = _sides(report, pair)
    change = _ratio(before, after)
    if before is None or after is None:
        return ["The loss of quality was not measured"]
    said = []
    if change is not None:
        said.append(
            f"Perplexity{where} {write.perplexity(before.perplexity)} → "
            f"{write.perplexity(after.perplexity)} ({write.ratio(change)})"
        )
    if after.ppl_ratio is not None and after.ppl_ratio_low is not None:
        ends = f"{write.fixed(after.ppl_ratio_low, 3)} to {write.fixed(after.ppl_ratio_high, 3)}"
        said.append(f"{write.fixed(after.ppl_ratio, 3)} times the dense torch model's ({ends})")
    said.append(f"KL to the dense model {write.fixed(after.kl, 3)} nats")
    said.append(f"The same next token in {write.percent(after.top1_agreement)} of places")
    for name, metric in quoted(after):
        kept = metric.retention
        said.append(
            f"{name}: the dense model itself is at chance"
            if kept is None
            else f"{name}: {write.percent(kept)} kept of what is beyond chance"
        )
    asked = talks(report.quality)
    sides = [asked[side] for side in _speakers(report, pair) if side in asked]
    if len(sides) == 2:
        passed = " → ".join(f"{side.passed} of {side.total}" for side in sides)
        said.append(f"Sanity prompts passed {passed}")
    return said


def _speakers(report: Report, pair: Pair | None) -> tuple[str, str]:
    """The rows of `quality` that answered for the dense and for the shipped side."""
    if pair is None:
        return "dense", "healed"
    return (pair.before.name if pair.before else "dense"), pair.after.name


def _gives(pair: Pair | None) -> list[str]:
    if pair is None:
        return ["No file for a device was written"]
    said = []
    size = write.mib(pair.after.bytes)
    if pair.before is not None and pair.before.bytes:
        change = 100 * (pair.after.bytes / pair.before.bytes - 1)
        said.append(f"{write.mib(pair.before.bytes)} → {size} ({change:+.1f} %)")
    else:
        said.append(f"A file of {size}")
    if pair.speedup is None:
        return [*said, "The speed was not measured"]
    for label, part in (("Decode", pair.speedup.decode), ("Prefill", pair.speedup.prefill)):
        said.append(f"{label} {write.ratio(part.median)} ({part.low:.2f} to {part.high:.2f})")
    return said
