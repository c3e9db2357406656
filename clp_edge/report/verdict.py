"""A sentence that decides and one on the user's aims, made of the report's numbers alone.

It claims a speed-up only where the whole interval lies above 1 and attains 95 %, puts the ideal
(the bytes saved; above it, for a small model, the blocks saved) beside it, names a heavy loss a
heavy loss (perplexity more than doubled), and says what was not measured. Above all: was a harder
quantization of the dense model tried at equal size?

>>> verdict(report)                                          # doctest: +SKIP
'Blocks 12-17 (6 of 30) are gone: decode is 1.16x faster (1.12 to 1.20, 97 %, n 6; the bytes saved
allow 1.15x), perplexity 23.1 -> 29.8 (1.29x); at equal size a harder quantization of the dense
model was not measured.'
"""

from __future__ import annotations

import math

from clp_edge.records import ArtifactRecord, GateVerdictRecord, QualityRecord, Report
from clp_edge.report import format as write
from clp_edge.report.aims import all_files, sentence
from clp_edge.report.facts import Pair, model_quality, pairs
from clp_edge.report.frontier import goal_words

HEAVY_LOSS = 2.0
# A file counts as of equal size up to this much larger.
EQUAL_SIZE = 1.02
# So far may a measured interval lie above the ideal before it is called suspect.
ABOVE_IDEAL = 1.02


def verdict(report: Report) -> str:
    """The sentences, for the first target; end with a full stop."""
    found = pairs(report)
    pair = found[0] if found else None
    parts = [_speed(pair, several=len(found) > 1), _quality(report, pair)]
    tail = [_equal_size(report, pair)]
    if report.quality_gate is not None:
        tail.insert(0, _gate(report.quality_gate))
    if report.goal is not None:
        tail.insert(0, goal_words(report.goal))
    unverified = [one.name for one in report.artifacts if not one.verified]
    if unverified:
        tail.append(f"{', '.join(unverified)} did not pass verification")
    said = "; ".join(text for text in tail if text)
    decided = f"{_subject(report)}: {', '.join(parts)}{'; ' + said if said else ''}."
    return " ".join([decided, *_aims(report, pair)])


def _aims(report: Report, pair: Pair | None) -> list[str]:
    """What --aim chose, and which of its user's aims the cut serves."""
    said = []
    choice = report.frontier.choice if report.frontier is not None else None
    if choice is not None:
        said.append(f"--aim {choice.aim} chooses {choice.chosen or 'nothing'}: {choice.why}.")
    if pair is not None:
        files = all_files(report)
        cut = next((one for one in files if one.name == pair.after.name), None)
        if cut is not None:
            text = sentence(cut, files)
            said.append(f"{text[:1].upper()}{text[1:]}.")
    return said


def _gate(asked: GateVerdictRecord) -> str:
    """Whether the files reach the quality that was asked for."""
    if asked.passed:
        return "the quality asked for is reached"
    missed = [name for name, misses in asked.misses.items() if misses]
    return f"the quality asked for is NOT reached by {', '.join(missed) or 'any file'}"


def _subject(report: Report) -> str:
    search = report.search
    if search is None or not search.dropped:
        return "No block was cut"
    gone = write.blocks(search.segments, search.dropped, report.model.blocks)
    return f"{gone} {'is' if len(search.dropped) == 1 else 'are'} gone"


def _speed(pair: Pair | None, *, several: bool) -> str:
    if pair is None or pair.speedup is None:
        return "the speed was not measured"
    decode, n = pair.speedup.decode, pair.speedup.n
    what = f"decode ({pair.target})" if several else "decode"
    median, ideal, sure = decode.median, decode.ideal, pair.speedup.confidence
    limit = "" if ideal is None else f"; the bytes saved allow {write.ratio(ideal)}"
    most = max([*(r for by, r in decode.bounds.items() if by != "cache"), ideal or 0.0])
    if ideal is not None and median > ideal and most > ideal * ABOVE_IDEAL:
        limit += f", the blocks saved {write.ratio(most)}"
    if n < 2:
        return f"{what} was {write.ratio(median)} in a single round, which proves nothing{limit}"
    span = f"{decode.low:.2f} to {decode.high:.2f}, {write.sureness(sure, n)}"
    if sure < write.USUAL_CONFIDENCE:  # of fewer than 6 rounds
        few = f"{what} was {write.ratio(median)} ({span}{limit})"
        return f"{few}, of too few rounds to be 95 % sure that it is faster or slower"
    if decode.low > 1.0:
        said = f"{what} is {write.ratio(median)} faster ({span}{limit})"
        if ideal is not None and decode.low > most * ABOVE_IDEAL:
            saved = "bytes and blocks" if decode.bounds else "bytes"
            said += f", more than the {saved} saved explain"
            if decode.low <= decode.bounds.get("cache", 0.0):
                said += (
                    "; the processor's last-level cache can, as it holds a larger share of the "
                    "smaller file"
                )
            else:
                said += ", so measure again before relying on it"
        return said
    if decode.high < 1.0:
        return f"{what} is slower, {write.ratio(median)} of the dense speed ({span}{limit})"
    return f"{what} is not measurably faster ({write.ratio(median)}, {span}{limit})"


def _quality(report: Report, pair: Pair | None) -> str:
    sides: tuple[QualityRecord | None, QualityRecord | None] = (None, None)
    where = ""
    if pair is not None:
        sides = (pair.quality_before, pair.quality_after)
    before, after = (_perplexity(side) for side in sides)
    if before is None or after is None:
        sides = model_quality(report)
        before, after = (_perplexity(side) for side in sides)
        where = " before quantization"
    if before is None or after is None:
        return "the loss of quality was not measured"
    change = after / before
    said = (
        f"perplexity{where} {write.perplexity(before)} -> {write.perplexity(after)}"
        f" ({write.ratio(change)}{_paired(*sides)})"
    )
    return f"{said}, a heavy loss of quality" if change > HEAVY_LOSS else said


def _paired(before: QualityRecord | None, after: QualityRecord | None) -> str:
    """The interval of the ratio, paired over the sequences: several times tighter than either
    perplexity. Nothing where the sequences were not kept, or are too few for an interval."""
    if before is None or after is None or not before.sequence_nll:
        return ""
    if len(before.sequence_nll) != len(after.sequence_nll):
        return ""
    from clp_edge.evaluate.intervals import perplexity_ratio

    found = perplexity_ratio(before.sequence_nll, after.sequence_nll)
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return ""
    return f", {found.low:.2f} to {found.high:.2f} over the same {found.n} sequences"


def _equal_size(report: Report, pair: Pair | None) -> str:
    """The honest rival: the dense model in fewer bits, no larger than the pruned file."""
    if pair is None:
        return ""
    found, ours = equal_size_rival(report, pair), _perplexity(pair.quality_after)
    if found is None or ours is None:
        return "at equal size a harder quantization of the dense model was not measured"
    score, best = found
    word = "better" if score < ours else "no better"
    return (
        f"at equal size the dense model as {best.target} is {word}"
        f" (perplexity {write.perplexity(score)} in {write.mib(best.bytes)})"
    )


def equal_size_rival(report: Report, pair: Pair) -> tuple[float, ArtifactRecord] | None:
    """The dense file of the lowest perplexity among those no larger, and that perplexity."""
    rivals = []
    beside = report.frontier.artifacts if report.frontier is not None else ()
    for artifact in (*report.artifacts, *beside):
        score = _perplexity(report.quality.get(artifact.name))
        small = artifact.bytes <= pair.after.bytes * EQUAL_SIZE
        if artifact.variant == "dense" and small and score is not None:
            rivals.append((score, artifact))
    return min(rivals, key=lambda rival: rival[0]) if rivals else None


def _perplexity(side: QualityRecord | None) -> float | None:
    return None if side is None else side.perplexity
