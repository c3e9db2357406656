"""The parent's side of a runtime: start the child, ask it, and say clearly how it died.

llama.cpp can abort the whole process (PITFALLS 14), and so can the out-of-memory killer. Whatever
ends the child becomes a `ChildDiedError`: the cause, the signal's name and the last log lines.

>>> run_in_child("json:dumps", what="an example", obj=[1, 2])
'[1, 2]'
"""

from __future__ import annotations

import os
import pickle
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from clp_edge import errors
from clp_edge.errors import ClpEdgeError, RuntimeDiedError, UsageError
from clp_edge.runtimes.child import HEADER
from clp_edge.waiting import short_spin

ANSWER_S = 300.0
BYTES_PER_SECOND = 10e6
_LOG_LINES = 40
_WORTH_SAYING = re.compile(r"error|fail|abort|assert|invalid|terminate|what\(\)|exception", re.I)


def patience_s(size: float) -> float:
    """How long one answer about weights of `size` bytes may take before the child counts as hung.

    Five minutes, and one second more for each 10 MB: an answer reads or writes the weights a few
    times at most, and a slow card reader or quantizing on one small core manages 10 MB/s. The
    demo's files (100 to 270 MB) get 310 to 330 s, 4 GB get 700 s.

    >>> patience_s(4e9)
    700.0
    """
    return ANSWER_S + size / BYTES_PER_SECOND


class ChildDiedError(RuntimeDiedError):
    """A runtime's process died or answered with an error; keeps the signal and the log's end."""

    def __init__(
        self, cause: str, cure: str = "", *, signal_name: str = "", log_lines: list[str]
    ) -> None:
        self.signal_name = signal_name
        self.log_lines = log_lines
        said = [line for line in log_lines if _WORTH_SAYING.search(line)] or log_lines
        words = " | ".join(line.strip() for line in said[-3:])
        super().__init__(f"{cause}: {words}" if words else cause, cure)


def pin(pid: int, cpus: Collection[int]) -> None:
    """Let a process run on these processors alone; threads that it starts later inherit it.

    Does nothing where the system has no such call (macOS). Raises UsageError for processors that
    are not there or not this process's to use.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    try:
        os.sched_setaffinity(pid, cpus)
    except ProcessLookupError:
        return  # it is gone: the first question says how
    except OSError as error:
        named = ", ".join(str(cpu) for cpu in sorted(cpus))
        raise UsageError(
            f"cannot pin to processors {named} ({error})", "take processors that this process has"
        ) from error


class ChildProcess:
    """One child that holds a runtime. Not thread-safe: one request at a time."""

    def __init__(
        self,
        what: str,
        *,
        timeout_s: float = ANSWER_S,
        environment: dict[str, str] | None = None,
        cpus: Collection[int] | None = None,
    ) -> None:
        self.what = what
        self.timeout_s = timeout_s
        handle, name = tempfile.mkstemp(prefix="clp-edge-", suffix=".log")
        self.log_path = Path(name)
        # PYTHONSAFEPATH (3.11+): a folder of the user's called `gguf` or `llama_cpp` is not ours
        ours = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}
        whole = {**os.environ, **ours}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "clp_edge.runtimes.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=handle,
                bufsize=0,
                env={**short_spin(whole), **whole},
            )
        finally:
            os.close(handle)
        if cpus is not None:
            pin(self._process.pid, cpus)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ)
        self._closed = False

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def log_lines(self, count: int = _LOG_LINES) -> list[str]:
        """The last lines the runtime printed, without empty ones."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - 65_536))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if line.strip(" .")][-count:]

    def ask(self, *request: Any, on_part: Callable[[Any], None] | None = None) -> Any:
        """Send a request and return its answer; parts on the way go to `on_part`."""
        parts = self.stream(*request)
        while True:
            try:
                part = next(parts)
            except StopIteration as end:
                return end.value
            if on_part is not None:
                on_part(part)

    def stream(self, *request: Any) -> Iterator[Any]:
        """Send a request; yield its parts; return (as StopIteration's value) its answer."""
        doing = f"{self.what}, {request[1].rpartition(':')[2]}"
        self._send(pickle.dumps(request, protocol=5), doing)
        finished = False
        try:
            while True:
                kind, *rest = pickle.loads(self._receive(doing))
                if kind == "part":
                    yield rest[0]
                    continue
                finished = True
                if kind == "done":
                    return rest[0]
                raise self._error_of(doing, *rest)
        finally:
            if not finished:  # the caller left, or Ctrl-C: the answers are out of step from here on
                self.close()

    def _error_of(self, doing: str, name: str, cause: str, cure: str, ours: bool) -> ClpEdgeError:
        kind = getattr(errors, name, None)
        if ours and isinstance(kind, type) and issubclass(kind, ClpEdgeError):
            return kind(cause, cure)
        return ChildDiedError(f"{doing}: {name}: {cause}", cure, log_lines=self.log_lines())

    def _send(self, payload: bytes, doing: str) -> None:
        if self._closed:
            raise RuntimeDiedError(f"{doing}: the session is closed", "open the artifact again")
        view = memoryview(HEADER.pack(len(payload)) + payload)
        try:
            while view:
                view = view[os.write(self._requests, view) :]
        except (BrokenPipeError, OSError) as error:
            raise self._death(doing) from error

    def _receive(self, doing: str) -> bytes:
        (size,) = HEADER.unpack(self._read(HEADER.size, doing))
        return self._read(size, doing)

    def _read(self, size: int, doing: str) -> bytes:
        buffer = bytearray()
        deadline = time.monotonic() + self.timeout_s
        while len(buffer) < size:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                lines = self.log_lines()
                self.close()
                raise ChildDiedError(
                    f"{doing}: hung, no answer within {self.timeout_s:.0f} s; it was stopped",
                    "close other programs and run the same command again (what was finished is "
                    "kept), or take a smaller model or context",
                    log_lines=lines,
                )
            piece = os.read(self._answers, min(size - len(buffer), 1 << 20))
            if not piece:
                raise self._death(doing)
            buffer += piece
        return bytes(buffer)

    def _death(self, doing: str) -> ChildDiedError:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        lines = self.log_lines()
        self.close()
        name = ""
        cure = "see the log lines; --debug shows more"
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
        if name == "SIGKILL":
            cure = "most likely out of memory: close other programs, or take a smaller target"
        elif name == "SIGILL":
            cure = "the runtime was built for another processor: reinstall it from source"
        how = f"was ended by {name}" if name else f"exited with code {code}"
        return ChildDiedError(
            f"{doing}: the process {how}", cure, signal_name=name, log_lines=lines
        )

    def close(self) -> None:
        """End the child and remove its log. May be called twice."""
        self._closed = True
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self.log_path.unlink(missing_ok=True)

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_in_child(spec: str, *, what: str, timeout_s: float = ANSWER_S, **kwargs: Any) -> Any:
    """Call "module:function" with `kwargs` in a process of its own and return what it returns.

    `what` names the work in error messages; `timeout_s` is how long it may take before it counts as
    hung (`patience_s` where files of any size are worked on). Raises RuntimeDiedError when the
    process dies of it or the function raises; an error of this project's own keeps its class.
    """
    with ChildProcess(what, timeout_s=timeout_s) as child:
        return child.ask("run", spec, kwargs)
