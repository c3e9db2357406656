"""The output folder: what is ours in it, what is done, what must be done again.

`OUT/clp_edge.json` says what was asked for, which stages are done and which files are ours. Each
stage keeps its result under `OUT/stages/NAME/` with the hash of all that it depends on; a stage
whose hash is the same is not run again. Hashes follow from the configuration and the inputs alone,
so they are known before any work.

An existing OUT: empty or absent, start; an unfinished run of ours, resume; a finished one, only the
same command again (then nothing is run); anything else is refused, and so is a folder that another
run is working in. `--force` deletes the files that clp_edge.json lists, and never a folder that is
not ours; `--no-resume` does so with an unfinished run. What an earlier attempt wrote and a finished
run did not write again is deleted at its end: no old file stands beside the new ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clp_edge import durable
from clp_edge.durable import is_leftover, remove_leftovers, write_text
from clp_edge.errors import ClpEdgeError
from clp_edge.pipeline import lock

STATE = "clp_edge.json"
RESULT = "result.json"
ASIDE = "aside.json"
HF_FOLDER = "hf"
"""the cut model in an output folder, plain Hugging Face"""


@dataclass
class OutputFolder:
    """An output folder that has been opened for one command."""

    path: Path
    state: dict[str, Any]
    hashes: dict[str, str]
    resume: bool = True
    _force: bool = False
    _about: dict[str, Any] = field(default_factory=dict)
    _lock: lock.Lock | None = None
    _written: set[str] = field(default_factory=set)

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
        Raises: ClpEdgeError where the folder is not ours, is being worked in, or holds another
            finished run.
        """
        lock.check_free(path)
        state = admit(path, hashes=hashes, force=force, resume=resume)
        return cls(path, state, hashes, resume, force, about)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def redone(self) -> list[str]:
        """Stages of an earlier run whose hash has changed."""
        done = self.state.get("stages", {})
        return [n for n, h in self.hashes.items() if n in done and done[n]["hash"] != h]

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the folder once the run has begun."""
        return [self._lock.warning] if self._lock is not None and self._lock.warning else []

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
        """Make the folder ours, and ours alone until `release`: from here on it can be resumed.

        Raises ClpEdgeError as `open` does: another run may have come first.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock.take(self.path)
        try:
            self._begin()
        except BaseException:
            self.release()
            raise

    def _begin(self) -> None:
        self.state = admit(self.path, hashes=self.hashes, force=self._force, resume=self.resume)
        if self._lock is not None and self._lock.held:
            remove_leftovers(self.path)
        for name in self.state.get("claimed", []):
            self._remove_claimed(self.path / name)
        if self.state and (self._force or not self.resume):
            self._clear()
            self.state = {}
        self.state = {
            **self._about,
            "status": "unfinished",
            "stages": dict(self.state.get("stages", {})),
            "files": list(self.state.get("files", [])),
        }
        self._force = False  # what is here from now on is this run's
        self._written = set()
        self._write()

    def release(self) -> None:
        """Let another run in; without it the folder is free when the process ends."""
        if self._lock is not None:
            self._lock.release()

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
        self.state.pop("claimed", None)
        self.state["stages"][name] = {
            "hash": self.hashes[name],
            "seconds": seconds,
            "files": relative,
        }
        self.own(self.path / file for file in relative)

    def set_aside(self, names: Iterable[str], place: Path) -> None:
        """Move what these stages left to `place` (in OUT): they count as not done, until
        `bring_back`. What was set aside there before is deleted."""
        self._remove([f for f in self.state["files"] if place in (self.path / f).parents])
        entries = {n: self.state["stages"].pop(n) for n in names if n in self.state["stages"]}
        self._write()
        moved = [place / ASIDE]
        for file in sorted({file for entry in entries.values() for file in entry["files"]}):
            moved.append(place / file)
            moved[-1].parent.mkdir(parents=True, exist_ok=True)
            durable.move(self.path / file, moved[-1])
        write_text(place / ASIDE, json.dumps(entries))
        self.own(moved)

    def bring_back(self, place: Path) -> None:
        """The stages that were set aside at `place` stand again, instead of what was done since.

        Nothing happens where nothing is there, and a file that is lost makes its stage run again.
        """
        try:
            entries = json.loads((place / ASIDE).read_text())
        except (OSError, ValueError):
            return
        since = [self.state["stages"].pop(name, None) for name in entries]
        self._write()
        self._remove([file for entry in since if entry is not None for file in entry["files"]])
        for file in sorted({file for entry in entries.values() for file in entry["files"]}):
            if (place / file).is_file():
                (self.path / file).parent.mkdir(parents=True, exist_ok=True)
                durable.move(place / file, self.path / file)
        self.state["stages"] |= entries
        self.own(self.path / file for entry in entries.values() for file in entry["files"])
        shutil.rmtree(place, ignore_errors=True)

    def own(self, files: Iterable[Path]) -> None:
        """Write down that these files are ours."""
        names = {os.path.relpath(file, self.path) for file in files}
        self._written |= names
        self.state["files"] = sorted({*self.state["files"], *names, STATE})
        self._write()

    def disown(self, name: str, files: Iterable[Path]) -> None:
        """These files of a stage have served: it stands without them, and `finish` deletes them."""
        gone = {os.path.relpath(file, self.path) for file in files}
        entry = self.state["stages"][name]
        entry["files"] = [file for file in entry["files"] if file not in gone]
        self._written -= gone
        self._write()

    def ours_below(self, path: Path) -> list[Path]:
        """Files at or below a path that an earlier run of ours wrote there."""
        listed = (self.path / name for name in self.state["files"])
        return [f for f in listed if (f == path or path in f.parents) and f.is_file()]

    def relative(self, paths: Iterable[Path]) -> tuple[str, ...]:
        """The files among these paths, relative to this folder."""
        return tuple(sorted(os.path.relpath(p, self.path) for p in paths if p.is_file()))

    def claim(self, path: Path) -> None:
        """Until a stage is stored, whatever stands at this path is ours, although it is not listed.

        For what gets its final name before it can be listed: a run that is killed in between
        leaves it to the next one to delete. A path at which something stands already is not taken.
        """
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            return
        claimed = {*self.state.get("claimed", []), os.path.relpath(path, self.path)}
        self.state["claimed"] = sorted(claimed)
        self._write()

    def finish(self) -> None:
        """The run is complete: delete what only earlier attempts wrote, and let others in."""
        stages = {n: e for n, e in self.state["stages"].items() if n in self.hashes}
        kept = {STATE, *self._written, *(f for e in stages.values() for f in e["files"])}
        stale = sorted(set(self.state["files"]) - kept)
        self.state["stages"] = stages
        self.state["files"] = sorted(set(self.state["files"]) & kept)
        self.state["status"] = "finished"
        self._remove(stale)
        self._write()
        self.release()

    def _write(self) -> None:
        write_text(self.path / STATE, json.dumps(self.state, indent=2) + "\n")

    def _clear(self) -> None:
        """Delete the files that the state lists, and what its stages have left in their folders."""
        self._remove(self.state.get("files", []))
        for name in {*self.hashes, *self.state.get("stages", {})}:
            folder = self.stage_folder(name)
            if self._is_inside(folder):
                shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(self.path / "stages")

    def _remove(self, names: Iterable[str]) -> None:
        """Delete these files, then the folders below OUT that are empty by that.

        Links are deleted, not followed; nothing outside OUT is touched, whatever the list says.
        """
        for name in names:
            target = self.path / name
            if not self._is_inside(target) or not (target.is_file() or target.is_symlink()):
                continue
            target.unlink()
            for folder in target.parents:
                if folder == self.path or not _remove_empty(folder):
                    break

    def _remove_claimed(self, path: Path) -> None:
        if not self._is_inside(path):
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def _is_inside(self, path: Path) -> bool:
        base, parent = self.path.resolve(), path.parent.resolve()
        return path.name not in ("", "..") and (parent == base or base in parent.parents)


def admit(
    path: Path, *, hashes: dict[str, str] | None = None, force: bool = False, resume: bool = True
) -> dict[str, Any]:
    """The state of a folder that a run may begin in; {} where it is new.

    Args: hashes, of every stage; without them any finished run of ours is let pass.
    Raises: ClpEdgeError where the folder is not ours, or holds a finished run that this one would
        replace without being told to.
    """
    state = read_state(path)
    if state is None:
        if path.exists() and (not path.is_dir() or any(_foreign(path))):
            raise ClpEdgeError(
                f"{path} exists and is not an output folder of clp-edge",
                "choose another --out (--force does not delete what is not ours)",
            )
        return {}
    if force or state.get("status") != "finished":
        return state
    if not resume:
        raise ClpEdgeError(
            f"--no-resume would replace the finished run in {path} ({state.get('command')})",
            "give --force as well to replace it, or choose another --out",
        )
    wanted = hashes or {}
    changed = [n for n, h in wanted.items() if state["stages"].get(n, {}).get("hash") != h]
    if changed:
        raise ClpEdgeError(
            f"{path} holds a finished run of another command ({state.get('command')}; "
            f"changed: {', '.join(changed)})",
            "choose another --out, or give --force to replace it",
        )
    return state


def _foreign(path: Path) -> Iterator[str]:
    """What is in the folder and was not left by a run that was killed as it began."""
    for entry in path.iterdir():
        if entry.name != lock.NAME and not is_leftover(entry.name):
            yield entry.name


def _remove_empty(folder: Path) -> bool:
    """Delete the folder if it is there and empty; whether it is gone."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def read_state(path: Path) -> dict[str, Any] | None:
    """The state of an output folder of ours, or None."""
    try:
        state = json.loads((path / STATE).read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and "stages" in state else None


def hf_folder_of(path: Path) -> Path:
    """The Hugging Face folder: the path itself, or hf/ where it is an output folder of ours."""
    inner = path / HF_FOLDER
    return inner if (path / STATE).is_file() and inner.is_dir() else path
