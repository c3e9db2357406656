"""How threads wait: briefly by default, as the user says where he says it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clp_edge import waiting
from clp_edge.commands.frame import import_torch
from clp_edge.runtimes import run_in_child


def test_pitfall_27_a_short_spin_unless_the_user_chose() -> None:
    environment = {"PATH": "/bin"}
    assert waiting.spin_briefly(environment) == waiting.SHORT_SPIN
    assert environment == {"PATH": "/bin", **waiting.SHORT_SPIN}
    assert (
        100 <= int(environment["GOMP_SPINCOUNT"]) <= 1000
    )  # from 3,000 up: slow when busy; 300: slow when quiet on some
    assert int(environment["KMP_BLOCKTIME"]) <= 5
    assert waiting.spin_briefly(environment) == {}  # a second call finds it set


@pytest.mark.parametrize("name", waiting.WAITING)
def test_any_choice_of_the_users_is_left_alone(name: str) -> None:
    environment = {name: "0"}
    assert waiting.spin_briefly(environment) == {}
    assert environment == {name: "0"}
    assert waiting.in_force({**environment, "PATH": "/bin"}) == {name: "0"}
    assert waiting.spin_briefly({name: " "})  # set, but to nothing


def test_passive_is_warned_about() -> None:
    text = waiting.warning({"OMP_WAIT_POLICY": "passive"})
    assert text is not None
    assert "three times slower" in text
    assert waiting.warning({"OMP_WAIT_POLICY": "ACTIVE"}) is None
    assert waiting.warning({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "300"}) is None
    assert waiting.warning({}) is None


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in waiting.WAITING:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("set_by_user", "expected"),
    [
        ({}, waiting.SHORT_SPIN["GOMP_SPINCOUNT"]),
        ({"OMP_WAIT_POLICY": "passive"}, None),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
    ],
)
def test_pitfall_27_every_child_spins_briefly(monkeypatch, set_by_user, expected) -> None:
    """Also the child of a program that never went through our command line."""
    clear(monkeypatch)
    for name, value in set_by_user.items():
        monkeypatch.setenv(name, value)
    assert run_in_child("os:getenv", what="x", key="GOMP_SPINCOUNT") == expected


def test_pitfall_27_the_command_line_sets_it_before_torch_is_loaded() -> None:
    code = (
        "import os, sys; import clp_edge.commands.frame as c; assert 'torch' not in sys.modules;"
        "c.import_torch(); assert 'torch' in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    )
    bare = {name: value for name, value in os.environ.items() if name not in waiting.WAITING}
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == waiting.SHORT_SPIN["GOMP_SPINCOUNT"]


def test_a_torch_that_is_loaded_already_keeps_its_waiting(monkeypatch) -> None:
    clear(monkeypatch)
    assert "torch" in sys.modules
    import_torch()
    assert waiting.in_force(os.environ) == {}
