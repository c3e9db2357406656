"""One registry type: names, aliases, help, the nearest name, lazy import, no doubles."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clp_edge.errors import UsageError
from clp_edge.registry import FORMATS, METHODS, RUNGS, Registry


def fruit() -> Registry:
    table = Registry("fruit", "--fruit")
    table.add("apple", "math:pi", "round", aliases=("malus", "pomme"))
    table.add("pear", object(), "not round")
    return table


def test_names_aliases_and_case() -> None:
    table = fruit()
    assert table.names() == ("apple", "pear")
    assert table.resolve("POMME ").name == "apple"
    assert "malus" in table
    assert "plum" not in table


def test_the_value_is_imported_when_it_is_used() -> None:
    import math

    assert fruit().load("malus") == math.pi


def test_an_object_is_its_own_value() -> None:
    table = Registry("fruit", "--fruit")
    plum = object()
    table.add("plum", plum, "blue")
    assert table.load("plum") is plum


def test_an_unknown_name_is_a_usage_error_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown fruit 'aple' \(--fruit\); did you mean apple"):
        fruit().resolve("aple")
    with pytest.raises(UsageError, match="known: apple, pear"):
        fruit().load("zzz")


@pytest.mark.parametrize(("name", "aliases"), [("apple", ()), ("malus", ()), ("fig", ("pear",))])
def test_no_name_is_given_twice(name: str, aliases: tuple[str, ...]) -> None:
    table = fruit()
    with pytest.raises(ValueError, match="registered already"):
        table.add(name, 1, "", aliases=aliases)
    assert table.names() == ("apple", "pear")


def test_a_temporary_row_shows_up_in_the_help_and_goes_again() -> None:
    table = fruit()
    with table.temporarily("fig", 3, "purple"):
        assert table.load("fig") == 3
        assert "fig: purple" in table.help()
    assert "fig" not in table


def test_words_beside_the_rows_are_choices_that_lead_nowhere() -> None:
    table = Registry("fruit", "--fruit", {"any": "whichever is ripe"})
    table.add("apple", 1, "round", aliases=("malus",))
    assert table.choose(" ANY") == "any"
    assert table.choose("Malus") == "apple"
    assert table.names() == ("apple",)
    assert table.help() == "any: whichever is ripe; apple: round"
    with pytest.raises(UsageError, match=r"did you mean any\? known: any, apple"):
        table.choose("anny")
    with pytest.raises(UsageError, match="unknown fruit 'any'"):
        table.load("any")
    with pytest.raises(ValueError, match="registered already"):
        table.add("any", 2, "")


@pytest.mark.parametrize("table", [FORMATS, METHODS, RUNGS])
def test_every_row_leads_somewhere(table: Registry) -> None:
    for row in table:
        assert row.help
        assert table.load(row.name) is not None


def test_the_tables_can_be_read_without_torch() -> None:
    script = (
        "import sys, clp_edge.registry as r; r.FORMATS.help(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
