"""The README cannot drift: its commands run, its flags are the CLI's, its make targets exist.

Each `clp-edge` command of a shell block runs in a folder of its own: with `--dry-run` where the
verb has it, on a tiny random Llama in place of MODEL, and on generated text in place of files.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, save_tiny_llama, write_words

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
START = "import sys; from clp_edge.cli import main; sys.exit(main())"

# Verbs whose first word without dashes is a model; with what makes them stop before the work.
VERBS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "compress": (True, ("--dry-run",)),
    "inspect": (True, ()),
    "doctor": (False, ()),
    "targets": (False, ()),
}
TEXT_FLAGS = {"--calibration": 1, "--eval-text": 2}


def shell_lines(text: str) -> list[str]:
    """Every command of the ```sh blocks and of the indented blocks, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^ {4}(clp-edge .*)$", text, flags=re.MULTILINE)
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


SECTION = "## Step by step"
STEPS = [
    line
    for line in shell_lines(README.split(SECTION)[1].split("\n## ")[0])
    if line.startswith("clp-edge ")
]
COMMANDS = [
    line for line in shell_lines(README) if line.startswith("clp-edge ") and line not in STEPS
]


def substituted(command: str, model: Path, folder: Path) -> list[str]:
    """The command's words after `clp-edge`, with our model, our texts and our output folder."""
    verb, *words = shlex.split(command, comments=True)[1:]
    takes_model, stop = VERBS[verb]
    given: list[str] = []
    seen_model = False
    waiting = ""
    for word in words:
        if waiting:
            if waiting in TEXT_FLAGS:
                text = folder / f"{waiting[2:]}.txt"  # long enough for the largest preset
                word = str(write_words(text, seed=TEXT_FLAGS[waiting], paragraphs=1_600))
            elif waiting == "--out":
                word = str(folder / "out")
            waiting = ""
        elif word.startswith("--"):
            waiting = "" if word in FLAGS_WITHOUT_VALUE else word
        elif takes_model and not seen_model:
            word, seen_model = str(model), True
        given.append(word)
    first = [] if seen_model or not takes_model else [str(model)]
    return [verb, *first, *given, *(flag for flag in stop if flag not in given)]


FLAGS_WITHOUT_VALUE = {
    "--force",
    "--resume",
    "--no-resume",
    "--no-bench",
    "--dry-run",
    "--json",
    "--quiet",
    "--debug",
    "--help",
}


def run(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    wide = {"COLUMNS": "240", "TERMINAL_WIDTH": "240", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-c", START, *words],
        cwd=folder,
        env={**os.environ, **wide},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


@pytest.fixture(scope="module")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many blocks as the demo model, so that the README's block ids exist; hidden 64."""
    folder = tmp_path_factory.mktemp("readme") / "tiny"
    return save_tiny_llama(folder, blocks=30, hidden_size=64, intermediate_size=128)


def documented_flags() -> set[str]:
    """The flags in the first column of the README's table."""
    rows = re.findall(r"^\| (`.*?`) \|", README, flags=re.MULTILINE)
    return {flag for row in rows for flag in re.findall(r"--[a-z][a-z-]*", row)}


def test_the_readme_has_commands_to_check() -> None:
    assert len(COMMANDS) >= 8
    assert {command.split()[1] for command in COMMANDS} == set(VERBS)


@pytest.mark.llama
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(command: str, tiny_demo: Path, tmp_path: Path) -> None:
    done = run(substituted(command, tiny_demo, tmp_path), tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.llama
def test_the_steps_of_the_readme_work_one_after_the_other(tmp_path: Path) -> None:
    """On a tiny model and little text; tests/pipeline/test_verbs.py compares with compress."""
    name = "SmolLM2-135M-Instruct"  # as the demo model is called
    model = save_tiny_llama(tmp_path / name, blocks=10)
    text = write_words(tmp_path / "words.txt", seed=0, paragraphs=500)
    sizes = ["--preset", "quick", "--calibration", str(text)]
    more = {
        "search": [str(model), *sizes],
        "heal": [*sizes, "--heal", "refit"],
        "bench": ["-p", "32", "-n", "8", "--rounds", "6", "--budget", "20"],
    }
    assert [step.split()[1] for step in STEPS] == ["search", "prune", "heal", "export", "bench"]
    for step in STEPS:
        words = shlex.split(step)[1:]
        done = run([*words, *more.get(words[0], [])], tmp_path)
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    assert list((tmp_path / "files" / "gguf").glob("*.Q4_K_M.gguf"))


def test_a_flag_that_does_not_exist_would_be_seen(tiny_demo: Path, tmp_path: Path) -> None:
    command = "clp-edge compress --target gguf-q4 --no-such-flag"
    done = run(substituted(command, tiny_demo, tmp_path), tmp_path)
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr


def test_the_table_of_flags_is_the_help(tmp_path: Path) -> None:
    done = run(["compress", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    offered = set(re.findall(r"--[a-z][a-z-]*", done.stdout)) - {"--help"}
    assert documented_flags() == offered


def test_the_targets_named_in_the_readme_exist() -> None:
    from clp_edge.export.targets import resolve

    names = set(re.findall(r"`((?:gguf|onnx)-[a-z0-9_]+)`", README)) - {"onnx-gpu"}
    assert len(names) >= 8
    for name in names:
        assert resolve(name).format == name.split("-")[0]


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, flags=re.MULTILINE))
    named = {
        word
        for line in shell_lines(README)
        if line.startswith("make ")
        for word in line.split()[1:]
    }
    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_extras_of_the_readme_exist() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^([a-z-]+) =", section, flags=re.MULTILINE))
    named = {
        extra for group in re.findall(r"\.\[([a-z,-]+)\]", README) for extra in group.split(",")
    }
    assert {"gguf", "demo"} <= named <= extras


def test_links_inside_the_repository_exist() -> None:
    for path in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert (REPOSITORY / path).exists(), path
