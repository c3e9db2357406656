"""The output folder: what is ours in it, what is done, what must be done again.

`OUT/clp_edge.json` says what was asked for, which stages are done and which files are ours. Each
stage keeps its result under `OUT/stages/NAME/` with the hash of all that it depends on; a stage
whose hash is the same is not run again. Hashes follow from the configuration and the inputs alone,
so they are known before any work.

An existing OUT: empty or absent, start; an unfinished run of ours, resume; a finished one, only the
same command again (then nothing is run); anything else is refused. `--force` deletes the files that
clp_edge.json lists, and never a folder that is not ours.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clp_edge.durable import write_text
from clp_edge.errors import ClpEdgeError

STATE = "clp_edge.json"
RESULT = "result.json"


@dataclass
class OutputFolder:
    """An output folder that has been opened for one command."""

    path: Path
    state: dict[str, Any]
    hashes: dict[str, str]
    resume: bool = True
    redone: list[str] = field(default_factory=list)
    """stages of an earlier run whose hash has changed"""

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        hashes: dict[str, str],
        about: dict[str, Any],
        force: bool = False,
        resume: bool = True,
    ) -> OutputFolder:
        """Apply the rules for an existing folder; nothing is written yet.

        Args: hashes, of every stage in order; about, what clp_edge.json says of the command.
        Raises: ClpEdgeError where the folder is not ours or holds another finished run.
        """
        state = read_state(path)
        if state is None:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ClpEdgeError(
                    f"{path} exists and is not an output folder of clp-edge",
                    "choose another --out (--force does not delete what is not ours)",
                )
            state = {}
        elif force:
            pass
        elif state.get("status") == "finished" and resume:
            changed = [n for n, h in hashes.items() if state["stages"].get(n, {}).get("hash") != h]
            if changed:
                raise ClpEdgeError(
                    f"{path} holds a finished run of another command ({state.get('command')}; "
                    f"changed: {', '.join(changed)})",
                    "choose another --out, or give --force to replace it",
                )
        folder = cls(path, state, hashes, resume)
        folder._force = force and bool(state)
        folder._about = about
        done = state.get("stages", {})
        folder.redone = [n for n, h in hashes.items() if n in done and done[n]["hash"] != h]
        return folder

    _force: bool = False
    _about: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether this very command has been run to its end here."""
        return (
            self.resume
            and not self._force
            and self.state.get("status") == "finished"
            and not self.redone
        )

    def begin(self) -> None:
        """Make the folder ours: from here on it can be resumed."""
        if self._force:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        known = self.state if not self._force else {}
        self.state = {
            **self._about,
            "status": "unfinished",
            "stages": dict(known.get("stages", {})),
            "files": list(known.get("files", [])),
        }
        if not self.resume:
            self.state["stages"] = {}
        self._write()

    def stage_folder(self, name: str) -> Path:
        """Where a stage keeps its result."""
        return self.path / "stages" / name

    def result(self, name: str) -> dict[str, Any] | None:
        """The stored result of a stage that was done with the same hash and whose files exist."""
        entry = self.state.get("stages", {}).get(name)
        if entry is None or entry["hash"] != self.hashes[name]:
            return None
        if any(not (self.path / file).is_file() for file in entry["files"]):
            return None
        path = self.stage_folder(name) / RESULT
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return None

    def clear_stage(self, name: str) -> Path:
        """An empty stage folder; the stage counts as not done."""
        if self.state["stages"].pop(name, None) is not None:
            self.state["status"] = "unfinished"
            self._write()
        folder = self.stage_folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def store(
        self, name: str, result: dict[str, Any], *, files: Iterable[Path] = (), seconds: float
    ) -> None:
        """Mark a stage as done. files: what it wrote outside its own folder."""
        folder = self.stage_folder(name)
        write_text(folder / RESULT, json.dumps(result))
        ours = [p for p in folder.rglob("*") if p.is_file()] + list(files)
        relative = sorted(os.path.relpath(p, self.path) for p in ours)
        self.state["stages"][name] = {
            "hash": self.hashes[name],
            "seconds": seconds,
            "files": relative,
        }
        self.own(self.path / file for file in relative)

    def own(self, files: Iterable[Path]) -> None:
        """Write down that these files are ours."""
        names = {os.path.relpath(file, self.path) for file in files}
        self.state["files"] = sorted({*self.state["files"], *names, STATE})
        self._write()

    def ours_below(self, path: Path) -> list[Path]:
        """Files at or below a path that an earlier run of ours wrote there."""
        listed = (self.path / name for name in self.state["files"])
        return [f for f in listed if (f == path or path in f.parents) and f.is_file()]

    def relative(self, paths: Iterable[Path]) -> tuple[str, ...]:
        """The files among these paths, relative to this folder."""
        return tuple(sorted(os.path.relpath(p, self.path) for p in paths if p.is_file()))

    def finish(self) -> None:
        """The run is complete."""
        self.state["status"] = "finished"
        self._write()

    def _write(self) -> None:
        write_text(self.path / STATE, json.dumps(self.state, indent=2) + "\n")

    def _clear(self) -> None:
        """Delete the files that the state lists, then the folders that are empty by that."""
        base = self.path.resolve()
        for name in self.state.get("files", []):
            target = (self.path / name).resolve()
            if base in target.parents and target.is_file():
                target.unlink()
        shutil.rmtree(self.path / "stages", ignore_errors=True)
        for folder in sorted((p for p in self.path.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()


def read_state(path: Path) -> dict[str, Any] | None:
    """The state of an output folder of ours, or None."""
    try:
        state = json.loads((path / STATE).read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and "stages" in state else None
