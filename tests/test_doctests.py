"""The examples in the docstrings are run, so that none of them can say what is not true.

Those that need a model or a file are marked `+SKIP`. They are read at least: they parse, what they
import exists, and each function of ours that they call takes the arguments they give.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from tests.test_floors import modules


def with_examples() -> list[str]:
    """Names of the modules whose source holds an example."""
    return sorted(name for name, path in modules().items() if ">>>" in path.read_text("utf-8"))


def docstrings_of(name: str) -> list[doctest.DocTest]:
    """The docstrings of one module that hold examples."""
    module = importlib.import_module(name)
    return [found for found in doctest.DocTestFinder().find(module, name) if found.examples]


def carry_out_imports(source: str, names: dict[str, Any]) -> None:
    """Import into `names` what an example imports; ImportError where it does not exist."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "<example>", "exec"), names)


def faults_of(source: str, names: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the calls of an example that is not run.

    `names` is what it sees: the module's names and what the examples before it imported. What
    stands for a model, a path and so on need not exist, but what is called must.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        first, *rest = called.split(".")
        if not all(part.isidentifier() for part in (first, *rest)):
            continue
        value = names.get(first, getattr(builtins, first, None))
        if value is None:
            if not rest:
                yield f"{called} does not exist\n"
            continue  # a method of something that stands for a model
        try:
            for part in rest:
                value = getattr(value, part)
            if not inspect.isbuiltin(value) and not hasattr(builtins, first):
                inspect.signature(value).bind(*node.args, **{k.arg or "": 0 for k in node.keywords})
        except (AttributeError, TypeError) as error:
            yield f"{called}: {error}\n"


def test_there_are_examples() -> None:
    assert len(with_examples()) > 20


@pytest.mark.parametrize("name", with_examples())
def test_the_examples_of_a_module_are_true(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    found = docstrings_of(name)
    assert found, "an example in a comment or in a string is never run"
    for text in found:
        names = dict(text.globs)
        for example in text.examples:
            carry_out_imports(example.source, names)
            if example.options.get(doctest.SKIP):
                said += faults_of(example.source, names)
        runner.run(text, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("gone(1)", "gone does not exist"),
        ("CutConfig(share=0.2)", "CutConfig: got an unexpected keyword argument 'share'"),
        ("CutConfig().count()", ""),  # of an object that is not made: not looked at
        ("CutConfig.tally(30)", "CutConfig.tally: type object 'CutConfig' has no attribute"),
        ("digest()", ""),
        ("choose('--x')", "choose: missing a required argument: 'value'"),
        ("from clp_edge.config import lost", "cannot import name 'lost'"),
        ("model.anything(1)", ""),
    ],
)
def test_a_skipped_example_is_read(source: str, fault: str) -> None:
    names = dict(vars(importlib.import_module("clp_edge.config")))
    try:
        carry_out_imports(source, names)
        found = list(faults_of(source, names))
    except ImportError as error:
        found = [str(error)]
    assert len(found) == bool(fault)
    assert not fault or fault in found[0]
