"""The child's side: one process that holds a runtime and answers the parent's frames.

Started as `python -m clp_edge.runtimes.child` by `process.py`. The pipes it was given as standard
input and output are moved away first, and 1 and 2 are pointed at the log (the parent gave the log
as standard error), so nothing that a runtime prints can reach the protocol.

A frame is 8 bytes of length (little endian) and a pickle. Requests are ("make", "module:name",
kwargs) - build the object whose methods are called next - and ("call", method, args, kwargs) and
("run", "module:name", kwargs). Answers are ("part", value)* then ("done", value), or
("error", type, cause, cure, ours).
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

HEADER = struct.Struct("<Q")


def take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the protocol off descriptors 0 and 1; what is printed from now on goes to the log."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, answers


def read_frame(stream: BinaryIO) -> Any:
    """The next message, or None when the parent closed its end."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    return pickle.loads(stream.read(HEADER.unpack(header)[0]))


def write_frame(stream: BinaryIO, message: Any) -> None:
    """Send one message."""
    payload = pickle.dumps(message, protocol=5)
    stream.write(HEADER.pack(len(payload)))
    stream.write(payload)
    stream.flush()


def resolve(spec: str) -> Any:
    """The object that "package.module:name" names."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


def answer(request: tuple[Any, ...], held: list[Any]) -> Any:
    """Carry out one request; `held` keeps the object that "make" built."""
    verb, name = request[0], request[1]
    if verb == "run":
        return resolve(name)(**request[2])
    if verb == "make":
        held[:] = [resolve(name)(**request[2])]
        return held[0].info
    if verb == "call":
        return getattr(held[0], name)(*request[2], **request[3])
    raise ValueError(f"unknown request {verb!r}")


def leave_with_parent() -> None:
    """End this process when the parent is gone, even in the middle of a long computation."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the parent closes the pipe."""
    from clp_edge.errors import ClpEdgeError

    held: list[Any] = []
    while (request := read_frame(requests)) is not None:
        try:
            value = answer(request, held)
            if isinstance(value, Iterator):
                for part in value:
                    write_frame(answers, ("part", part))
                value = None
            write_frame(answers, ("done", value))
        except ClpEdgeError as error:
            write_frame(answers, ("error", type(error).__name__, error.cause, error.cure, True))
        except Exception as error:  # everything else the runtime throws: the parent says it
            sys.stdout.flush()
            write_frame(answers, ("error", type(error).__name__, str(error), "", False))


def main() -> None:
    """Serve the parent. Ctrl-C is the parent's business: it closes the pipe."""
    requests, answers = take_over_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    serve(requests, answers)


if __name__ == "__main__":
    main()
