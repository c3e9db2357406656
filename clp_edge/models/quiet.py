"""Silence transformers' progress bars and reports around a load or a save.

Stages report through a callback and only the console draws; what matters in a loading report is
checked by the caller and raised.

>>> with quiet():
...     logging.is_progress_bar_enabled()
False
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no log lines below CRITICAL inside; restored on the way out."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
