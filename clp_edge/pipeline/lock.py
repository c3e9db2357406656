"""One run at a time in an output folder: a lock that the system frees, even after kill -9.

flock(2) on `OUT/.clp_edge.lock`, held open for the whole run. The file says who holds it; that it
exists says nothing. On a file system without such locks a run goes on, with a warning.

>>> lock = take(Path("out"))                                                # doctest: +SKIP
>>> lock.release()                                                          # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from clp_edge.errors import ClpEdgeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".clp_edge.lock"
PATIENCE = 0.3
"""seconds that taking it is tried for: who only looks holds it for a moment"""


@dataclass
class Lock:
    """A lock that is held, or the reason why this file system has none."""

    path: Path
    handle: int | None
    warning: str | None = None

    @property
    def held(self) -> bool:
        return self.handle is not None

    def release(self) -> None:
        """Let the next one in; twice does no harm."""
        if self.handle is not None:
            # while it is held: who waits for this very file sees that it is gone, and makes his own
            self.path.unlink(missing_ok=True)
            os.close(self.handle)
            self.handle = None


def take(folder: Path) -> Lock:
    """Take the lock of an existing folder. Raises ClpEdgeError where another run holds it."""
    path = folder / NAME
    if fcntl is None:
        return Lock(path, None, _no_locks(folder, "this system has none"))
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, handle):
                os.ftruncate(handle, 0)
                now = datetime.now().astimezone().isoformat(timespec="seconds")
                os.write(handle, json.dumps({"pid": os.getpid(), "since": now}).encode())
                return Lock(path, handle)
        except BlockingIOError:
            if time.monotonic() > deadline:
                error = _busy(folder, path)
                os.close(handle)
                raise error from None
        except OSError as error:
            os.close(handle)
            path.unlink(missing_ok=True)
            return Lock(path, None, _no_locks(folder, error.strerror or str(error)))
        os.close(handle)
        time.sleep(0.02)


def check_free(folder: Path) -> None:
    """Raise the ClpEdgeError of `take` where another run holds the lock; nothing is written."""
    path = folder / NAME
    if fcntl is None:
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # no such file: nobody holds it
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(folder, path) from None
    except OSError:  # no locks here: `take` says so
        return
    finally:
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the name still means the file that was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _busy(folder: Path, path: Path) -> ClpEdgeError:
    who = ""
    try:
        said = json.loads(path.read_text())
        since = datetime.fromisoformat(said["since"])
        who = f" (process {int(said['pid'])}, since {since:%Y-%m-%d %H:%M:%S})"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it has just begun
    return ClpEdgeError(
        f"another run of clp-edge is working in {folder}{who}",
        "wait until it has ended, or choose another --out",
    )


def _no_locks(folder: Path, reason: str) -> str:
    return f"{folder} cannot be locked ({reason}): start no second run in it while this one works"
