"""What can go wrong, said in one line: the cause, then the cure.

Every error that a user may meet is a `ClpEdgeError`. The command line prints it as one line and
exits with its `exit_code`; a traceback appears only with `--debug`.

>>> str(ClpEdgeError("the file is empty", "give one with text"))
'the file is empty; give one with text'
"""


class ClpEdgeError(Exception):
    """A failure with a cause and, where there is one, a cure."""

    exit_code = 1

    def __init__(self, cause: str, cure: str = "") -> None:
        self.cause = cause.strip()
        self.cure = cure.strip()
        super().__init__(f"{self.cause}; {self.cure}" if self.cure else self.cause)


class UsageError(ClpEdgeError):
    """The command itself is wrong: an unknown name, a number out of range, flags that exclude."""

    exit_code = 2


class UnsupportedModelError(ClpEdgeError):
    """The model cannot be cut or exported safely; the cause says which part of it."""


class MissingDependencyError(ClpEdgeError):
    """An optional package is not installed; the cure is the line that installs it."""


class RuntimeDiedError(ClpEdgeError):
    """A child process that runs a model died or answered with an error."""


class VerificationError(ClpEdgeError):
    """A file was written, but it does not do what the model does; it keeps its temporary name."""

    exit_code = 3


class QualityGateError(ClpEdgeError):
    """The files are written and verified, but a quality that was asked for is not reached."""

    exit_code = 4


class PreflightError(ClpEdgeError):
    """Everything that stands in the way of a run, found before any work."""

    def __init__(self, problems: list[ClpEdgeError]) -> None:
        self.problems = problems
        self.exit_code = max(problem.exit_code for problem in problems)
        if len(problems) == 1:
            super().__init__(problems[0].cause, problems[0].cure)
        else:
            listed = "".join(f"\n  - {problem}" for problem in problems)
            super().__init__(f"{len(problems)} problems stand in the way:{listed}")
