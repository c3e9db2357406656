"""Progress: a Ctrl-C that Python drops is raised again at the next step."""

from __future__ import annotations

import signal

import pytest

from clp_edge.progress import Interruptible, Quiet


class Finalizer:
    """Python prints what a finalizer raises, and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def usual_sigint():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_interrupt_is_raised_at_the_next_step(usual_sigint):
    reached = []

    def run() -> None:
        with Interruptible(Quiet()) as observer, observer.stage(1, 1, "heal") as progress:
            progress(1, 2)
            Finalizer()
            reached.append("past the finalizer")
            progress(2, 2)
            reached.append("past the step")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["past the finalizer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stage_without_another_step_ends_with_it(usual_sigint):
    reached = []

    def run() -> None:
        with Interruptible(Quiet()) as observer:
            with observer.stage(1, 2, "cut"):
                Finalizer()
                reached.append("past the finalizer")
            reached.append("past the stage")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["past the finalizer"]


def test_where_the_signal_is_ignored_it_stays_so(usual_sigint):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruptible(Quiet()) as observer, observer.stage(1, 1, "cut") as progress:
        signal.raise_signal(signal.SIGINT)
        progress(1, 1)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
