"""--aim: the best file in one aim among those good enough; a dense file means "no cut".

Good enough is what the quality gate lets pass; without a gate, what has no more KL than the dense
Q4_K_M file, the one that people would use instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clp_edge.records import ChoiceRecord
from clp_edge.report import format as write
from clp_edge.report.aims import AIMS, Measured

BAR_TARGET = "gguf-q4_k_m"


def bar_of(files: Sequence[Measured]) -> Measured | None:
    """The dense file that is the bar where no quality was asked for."""
    return next(
        (
            one
            for one in files
            if one.artifact.variant == "dense" and one.artifact.target == BAR_TARGET
        ),
        None,
    )


def below_bar(files: Sequence[Measured]) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The bar in words, and what each file misses of the dense Q4_K_M file's quality."""
    bar = bar_of(files)
    if bar is None or bar.kl is None:
        said = "the dense Q4_K_M file, which is the bar without a quality gate, was not measured"
        return said, {one.name: (said,) for one in files}
    limit = bar.kl
    misses: dict[str, tuple[str, ...]] = {
        one.name: ()
        if one.kl is not None and one.kl <= limit
        else (
            "its KL was not measured"
            if one.kl is None
            else f"KL {write.number(one.kl)} is more than {bar.name}'s {write.number(limit)}",
        )
        for one in files
    }
    return f"no more KL than {bar.name} ({write.number(limit)} nats; no gate was given)", misses


def choose(
    name: str, files: Sequence[Measured], bar: str, misses: Mapping[str, tuple[str, ...]]
) -> ChoiceRecord:
    """The best in the aim among the files that miss nothing; of equal ones the one of less KL.

    Args: bar, the quality asked for in words; misses, file -> what it does not reach (empty: it
        passes).
    """
    aim = AIMS[name]
    failed = {one.name: misses[one.name] for one in files if misses[one.name]}
    for one in files:
        if one.name not in failed and aim.cost(one) is None:
            failed[one.name] = (f"its {aim.words} was not measured",)
    passed = sorted(
        (one for one in files if one.name not in failed),
        key=lambda one: (aim.cost(one) or 0.0, one.kl if one.kl is not None else 0.0),
    )
    if not passed:
        why = f"no file of {len(files)} reaches it: {bar}"
        return ChoiceRecord(name, None, False, bar, why, (), failed)
    best = passed[0]
    cut = best.artifact.variant == "healed"
    what = "the cut" if cut else "no cut"
    of = f"{len(passed)} of {len(files)} files that pass"
    why = f"{what}: {best.name} has the best {aim.words} ({aim.show(aim.value(best))}) of {of}"
    if len(passed) > 1:
        over = aim.gain(passed[1], best)
        if over is not None:
            noise = "" if over.sure or over.n == 0 else ", within the noise"
            why += f"; {passed[1].name} is next ({over.words()}{noise})"
    return ChoiceRecord(name, best.name, cut, bar, why, tuple(one.name for one in passed), failed)
