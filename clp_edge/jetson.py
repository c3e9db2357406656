"""Which Jetson this is, if it is one: it decides which wheels have code for the GPU."""

from __future__ import annotations

from pathlib import Path


def jetson_model(root: Path = Path("/")) -> str | None:
    """The board's name, such as "NVIDIA Jetson Orin Nano Developer Kit"; None elsewhere.

    `root` stands for / (tests plant a tree there).
    """
    try:
        text = (root / "proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    model = text.strip("\0 \n")
    return model if "jetson" in model.lower() else None
