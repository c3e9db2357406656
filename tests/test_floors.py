"""The house stands: who imports whom, who prints, who exits (DESIGN.md, "Who stands on whom").

The imports are read from the source (ast), lazy ones inside functions and those under
TYPE_CHECKING included. A room may import from itself and from rooms that stand lower; on floor 0
and floor 1 the order given counts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# The folders of the one package; see pyproject.toml.
FOLDERS = {
    "clp_edge": "clp_edge",
    "clp_edge.kernels": "kernels",
    "clp_edge.export": "export",
    "clp_edge.bench": "bench",
}

# room -> (floor, order on that floor). Equal pairs are neighbours and do not know each other.
FLOORS: dict[str, tuple[int, int]] = {
    "": (-1, 0),  # clp_edge/__init__.py: the version, nothing else
    "errors": (0, 0),
    "durable": (0, 1),
    "segment": (0, 1),
    "progress": (0, 1),
    "medians": (0, 1),
    "metrics": (0, 1),
    "waiting": (0, 1),
    "jetson": (0, 1),
    "ort_packages": (0, 1),
    "kernels": (0, 1),
    "registry": (0, 1),
    "config": (0, 2),
    "records": (0, 2),
    "gguf_file": (1, 0),
    "models": (1, 1),
    "data": (1, 2),
    "runtimes": (1, 2),
    "evaluate": (1, 3),
    "heal": (2, 0),
    "export": (2, 0),
    "bench": (2, 0),
    "search": (3, 0),
    "report": (4, 0),
    "pipeline": (5, 0),
    "ui": (6, 0),
    "doctor": (6, 0),
    "api": (6, 0),
    "commands": (7, 0),
    "cli": (7, 1),
    "__main__": (8, 0),
}

# Only these may print, exit or read argv: the command line, and the entry point of a child process.
MAY_SPEAK = {"clp_edge.cli", "clp_edge.__main__", "clp_edge.runtimes.child"}
SPEAKING_ROOM = "commands"
ONLY_CLI_IMPORTS = {"ui"}


def modules(repository: Path = REPOSITORY) -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for package, folder in FOLDERS.items():
        root = repository / folder
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join((package, *parts))] = path
    return found


def room(module: str) -> str:
    """The room that a module of ours belongs to: "clp_edge.heal.refit" -> "heal"."""
    return ".".join(module.split(".")[1:2])


def imported(name: str, tree: ast.AST, *, is_package: bool, known: set[str]) -> Iterator[str]:
    """Every module of ours that this one imports, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "clp_edge":
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                parents = parents[: len(parents) - node.level + (1 if is_package else 0)]
                base = ".".join([*parents, *([base] if base else [])])
            if base.split(".")[0] != "clp_edge":
                continue
            for alias in node.names:
                # `from package import x`: x is a module of the package, or a name in its __init__
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The module less its `if TYPE_CHECKING:` blocks: what is imported when it runs."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            test = node.test
            name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
            return node.orelse if name == "TYPE_CHECKING" else self.generic_visit(node)

    return Strip().visit(ast.parse(ast.unparse(tree)))


def floor_faults(name: str, imports: set[str]) -> list[str]:
    """One line for each import that goes up or sideways."""
    faults = []
    own = room(name)
    if own not in FLOORS:
        return [f"{name}: the room {own!r} has no floor; give it one in FLOORS"]
    for target in sorted(imports):
        other = room(target)
        if other == own:
            continue
        if other not in FLOORS:
            faults.append(f"{name} imports {target}, a room without a floor")
        elif FLOORS[other] >= FLOORS[own]:
            way = "sideways" if FLOORS[other][0] == FLOORS[own][0] else "upward"
            faults.append(f"{name} imports {target}: {way}")
        elif other in ONLY_CLI_IMPORTS and own not in ("cli", SPEAKING_ROOM):
            faults.append(f"{name} imports {target}, which only the cli may")
    return faults


def speech_faults(name: str, tree: ast.AST) -> list[str]:
    """One line for each print, exit, or look at argv outside the modules that may."""
    if name in MAY_SPEAK or room(name) == SPEAKING_ROOM:
        return []
    faults = []
    for node in ast.walk(tree):
        what = ""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"print", "exit", "quit", "input"}:
                what = f"{node.func.id}()"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in {("sys", "exit"), ("sys", "argv"), ("os", "_exit")}:
                what = f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            names = {alias.name for alias in node.names} & {"exit", "argv"}
            what = f"from sys import {', '.join(sorted(names))}" if names else ""
        elif isinstance(node, ast.Raise):
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(error, ast.Name) and error.id == "SystemExit":
                what = "raise SystemExit"
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names} & {"argparse", "typer", "click"}
            what = f"import {', '.join(sorted(names))}" if names else ""
        if what:
            faults.append(f"{name}:{node.lineno}: {what}")
    return faults


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, first module repeated at its end; empty when there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for target in sorted(graph.get(name, ())):
            if target != name and (found := visit(target)):
                return found
        path.pop()
        done.add(name)
        return []

    for name in sorted(graph):
        if found := visit(name):
            return found
    return []


def read_house() -> dict[str, ast.Module]:
    """The parsed source of every module."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}


def graph_of(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Who imports whom, among our own modules."""
    files = modules()
    return {
        name: set(
            imported(name, tree, is_package=files[name].name == "__init__.py", known=set(files))
        )
        for name, tree in trees.items()
    }


def test_every_import_goes_down() -> None:
    graph = graph_of(read_house())
    assert len(graph) > 10
    faults = [fault for name, imports in graph.items() for fault in floor_faults(name, imports)]
    assert not faults, "\n".join(faults)


def test_only_the_command_line_speaks() -> None:
    trees = read_house()
    faults = [fault for name, tree in trees.items() for fault in speech_faults(name, tree)]
    assert not faults, "\n".join(faults)


def test_no_circles() -> None:
    """Imports for type checking alone do not run, so inside a room they may point back."""
    trees = {name: without_type_checking(tree) for name, tree in read_house().items()}
    assert circle(graph_of(trees)) == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("clp_edge.heal.refit", "from clp_edge.search import windows", "upward"),
        ("clp_edge.heal.refit", "def f():\n    import clp_edge.pipeline", "upward"),
        ("clp_edge.heal.refit", "from clp_edge.export.targets import TARGETS", "sideways"),
        ("clp_edge.heal.refit", "from ..bench import runner", "sideways"),
        ("clp_edge.models.source", "from clp_edge.runtimes import base", "sideways"),
        ("clp_edge.data.packing", "from clp_edge.runtimes import base", "sideways"),
        ("clp_edge.errors", "from clp_edge.segment import Segment", "sideways"),
        ("clp_edge.pipeline", "from clp_edge import ui", "upward"),
        ("clp_edge.doctor", "from clp_edge.ui import console", "sideways"),
        ("clp_edge.__main__", "from clp_edge.ui import console", "only the cli"),
        ("clp_edge.attic.box", "import clp_edge.errors", "no floor"),
        ("clp_edge.cli", "from clp_edge.attic import box", "without a floor"),
    ],
)
def test_the_checker_sees_a_bad_import(name: str, source: str, fault: str) -> None:
    known = {"clp_edge.ui", "clp_edge.search.windows", "clp_edge.bench.runner"}
    found = floor_faults(
        name, set(imported(name, ast.parse(source), is_package=False, known=known))
    )
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("clp_edge.search.windows", "from clp_edge.heal import refit"),
        ("clp_edge.evaluate.perplexity", "from clp_edge.runtimes.base import Session"),
        ("clp_edge.heal.refit", "from . import endpoints\nimport torch\nfrom os import path"),
        ("clp_edge.cli", "from clp_edge.ui import console\nfrom clp_edge import __version__"),
    ],
)
def test_the_checker_lets_good_imports_pass(name: str, source: str) -> None:
    found = set(imported(name, ast.parse(source), is_package=False, known={"clp_edge.heal.refit"}))
    assert floor_faults(name, found) == []


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "import sys\nsys.exit(1)",
        "import sys\nx = sys.argv[1]",
        "from sys import argv",
        "raise SystemExit(2)",
        "raise SystemExit",
        "def f():\n    exit()",
        "import argparse",
    ],
)
def test_the_checker_hears_a_module_speak(source: str) -> None:
    assert len(speech_faults("clp_edge.heal.refit", ast.parse(source))) == 1
    assert speech_faults("clp_edge.cli", ast.parse(source)) == []


def test_the_checker_sees_a_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_for_type_checking_count_for_the_floors_but_not_for_circles() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import clp_edge.pipeline\n"
    tree = ast.parse(source)
    found = set(imported("clp_edge.heal.refit", tree, is_package=False, known=set()))
    assert len(floor_faults("clp_edge.heal.refit", found)) == 1
    running = without_type_checking(tree)
    assert set(imported("clp_edge.heal.refit", running, is_package=False, known=set())) == set()
