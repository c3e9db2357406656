"""Reading the small files of /proc and /sys: their text, or why there is none.

Every probe takes a `root` that stands for /, so that a test can plant a tree of its own. Nothing
here ever opens a file for writing.
"""

from __future__ import annotations

import re
from pathlib import Path


class ProbeFaultError(OSError):
    """A source that cannot be read: one line that says which, and why."""


def read(path: Path) -> str | None:
    """The text, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def line(path: Path) -> str | None:
    """The text without its ends, or None where there is none."""
    return (read(path) or "").strip() or None


def first(pattern: str, text: str | None) -> str | None:
    """The first group of the first match, any line's."""
    match = re.search(pattern, text or "", re.MULTILINE)
    return match[1].strip() if match else None


def number(path: Path) -> int:
    """The whole number that the file holds. Raises ProbeFaultError with the reason otherwise."""
    try:
        return int(path.read_text(encoding="utf-8", errors="replace").strip())
    except PermissionError:
        raise ProbeFaultError(f"{path} may not be read by this user") from None
    except FileNotFoundError:
        raise ProbeFaultError(f"{path} is not there") from None
    except OSError as error:
        raise ProbeFaultError(f"{path} cannot be read ({error.strerror or error})") from None
    except ValueError:
        raise ProbeFaultError(f"{path} holds no number") from None


def number_or_none(path: Path) -> int | None:
    """The number, or None where it cannot be read."""
    try:
        return number(path)
    except ProbeFaultError:
        return None
