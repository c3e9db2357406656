"""One line each: the cause, then the cure; and the exit codes of DESIGN.md."""

from __future__ import annotations

import pytest

from clp_edge.errors import (
    ClpEdgeError,
    MissingDependencyError,
    PreflightError,
    QualityGateError,
    RuntimeDiedError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)


def test_cause_then_cure() -> None:
    error = ClpEdgeError(" the file is empty ", "give one with text ")
    assert str(error) == "the file is empty; give one with text"
    assert (error.cause, error.cure) == ("the file is empty", "give one with text")
    assert str(ClpEdgeError("the disk is full")) == "the disk is full"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ClpEdgeError, 1),
        (UsageError, 2),
        (UnsupportedModelError, 1),
        (MissingDependencyError, 1),
        (RuntimeDiedError, 1),
        (VerificationError, 3),
        (QualityGateError, 4),
    ],
)
def test_exit_codes(kind: type[ClpEdgeError], code: int) -> None:
    error = kind("cause", "cure")
    assert error.exit_code == code
    assert isinstance(error, ClpEdgeError)


def test_preflight_lists_every_problem_and_takes_the_gravest_code() -> None:
    problems = [ClpEdgeError("no space", "free 2 GB"), UsageError("no such target", "try gguf-q4")]
    error = PreflightError(problems)
    assert error.exit_code == 2
    assert str(error).splitlines() == [
        "2 problems stand in the way:",
        "  - no space; free 2 GB",
        "  - no such target; try gguf-q4",
    ]


def test_preflight_with_one_problem_is_that_problem() -> None:
    error = PreflightError([ClpEdgeError("no space", "free 2 GB")])
    assert str(error) == "no space; free 2 GB"
    assert error.exit_code == 1
