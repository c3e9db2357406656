"""The package installs as one thing: the wheel and the editable install import every module.

`kernels/`, `export/` and `bench/` are `clp_edge.kernels`, `clp_edge.export` and `clp_edge.bench`;
nothing so generic may land in site-packages, where transformers looks for a package `kernels`.
Both builds are made from a copy of the sources, so no old build/ folder can lend a module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import clp_edge
from tests.test_floors import FOLDERS, modules

REPOSITORY = Path(__file__).resolve().parents[1]

IMPORT_EVERYTHING = """
import importlib, pkgutil
import clp_edge
names = ["clp_edge"]
for found in pkgutil.walk_packages(clp_edge.__path__, "clp_edge."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
        names.append(found.name)
print(clp_edge.__version__)
print(clp_edge.__file__)
print(" ".join(names))
"""

IMPORT_BY_NAME = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(importlib.import_module("clp_edge").__file__)
"""

# Run as the console script runs it, then look at what was loaded.
HELP_WITHOUT_TORCH = """
import sys
sys.argv = ["clp-edge", "--help"]
from clp_edge.cli import main
try:
    code = main()
except SystemExit as end:
    code = end.code
heavy = sorted({"torch", "transformers", "numpy", "gguf", "llama_cpp"} & set(sys.modules))
sys.exit(f"exit code {code}" if code else f"loaded {heavy}" if heavy else 0)
"""


# Lends an empty environment the third-party packages of the running one: they come after its own,
# and their .pth files, this repository's editable install among them, are not read.
LENT = "lent-third-party.pth"


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; a failure shows all that it said."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from."""
    copy = tmp_path_factory.mktemp("sources") / "clp-edge"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in FOLDERS.values():
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy / name)
    return copy


def build(sources: Path, hook: str, folder: Path) -> Path:
    """A wheel from setuptools' own hook: build_wheel, or build_editable (PEP 660)."""
    code = f"import setuptools.build_meta as b; print(b.{hook}({str(folder)!r}))"
    printed = run(sys.executable, "-c", code, cwd=sources)
    return folder / printed.split()[-1]


def install(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """An empty environment with this wheel alone in it: (its folder, its site-packages)."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    run(*pip, "--no-deps", "--no-index", "--no-compile", wheel, cwd=folder)
    printed = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    site = Path(printed.strip())
    (site / LENT).write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder, site


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(sources, "build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return install(wheel, tmp_path_factory.mktemp("installed"))


def test_the_wheel_holds_every_module_and_nothing_generic(wheel: Path, sources: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"clp_edge", f"clp_edge-{clp_edge.__version__}.dist-info"}
    inside = {name for name in names if name.endswith(".py")}
    expected = set()
    for module, path in modules(sources).items():
        file = module.replace(".", "/")
        expected.add(f"{file}/__init__.py" if path.name == "__init__.py" else f"{file}.py")
    assert inside == expected, "pyproject.toml's list of packages is not the folders' own"
    assert {"clp_edge/py.typed", "clp_edge/data/openings.txt"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_wheel_imports_every_module(
    installed: tuple[Path, Path], sources: Path, tmp_path: Path
) -> None:
    environment, site = installed
    printed = run(environment / "bin" / "python", "-c", IMPORT_EVERYTHING, cwd=tmp_path)
    version, file, names = printed.strip().splitlines()[-3:]
    assert version == clp_edge.__version__
    assert Path(file).is_relative_to(site)
    assert set(names.split()) == set(modules(sources)) - {"clp_edge.__main__"}


def test_site_packages_gains_no_generic_name(installed: tuple[Path, Path]) -> None:
    _, site = installed
    found = {path.name for path in site.iterdir()} - {"__pycache__", LENT}
    assert found == {"clp_edge", f"clp_edge-{clp_edge.__version__}.dist-info"}


def test_the_editable_install_imports_every_module(sources: Path, tmp_path: Path) -> None:
    wheel = build(sources, "build_editable", tmp_path)
    environment, _ = install(wheel, tmp_path / "editable")
    names = sorted(set(modules(sources)) - {"clp_edge.__main__"})
    python = environment / "bin" / "python"
    printed = run(python, "-c", IMPORT_BY_NAME, *names, cwd=tmp_path)
    assert Path(printed.split()[-1]).is_relative_to(sources)


def test_the_console_script_answers_help(installed: tuple[Path, Path], tmp_path: Path) -> None:
    environment, _ = installed
    printed = run(environment / "bin" / "clp-edge", "--help", cwd=tmp_path)
    assert "compress" in printed


def test_help_loads_no_torch(installed: tuple[Path, Path], tmp_path: Path) -> None:
    environment, _ = installed
    python = environment / "bin" / "python"
    run(python, "-c", HELP_WITHOUT_TORCH, cwd=tmp_path)
