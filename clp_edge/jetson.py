"""Which Jetson this is, if it is one, and which JetPack: they decide which wheels have GPU code."""

from __future__ import annotations

import re
from pathlib import Path

# Jetson Linux (L4T) -> JetPack, the major versions. NVIDIA's release notes of each.
JETPACK_OF_L4T = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}


def jetson_model(root: Path = Path("/")) -> str | None:
    """The board's name, such as "NVIDIA Jetson Orin Nano Developer Kit"; None elsewhere.

    Some releases of JetPack 5 leave the word Jetson out; then the device tree's list of compatible
    chips tells. `root` stands for / (tests plant a tree there).
    """
    model = _text(root / "proc/device-tree/model")
    if model is None:
        return None
    if "jetson" in model.lower():
        return model
    chips = _text(root / "proc/device-tree/compatible") or ""
    return model if "nvidia,tegra" in chips else None


def l4t_release(root: Path = Path("/")) -> str | None:
    """Jetson Linux's version, such as "36.4.3"; None elsewhere."""
    text = _text(root / "etc/nv_tegra_release") or ""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{match[1]}.{match[2].rstrip('.')}" if match else None


def jetpack(l4t: str | None) -> str | None:
    """The major version of JetPack that has this Jetson Linux; None where it is not known.

    >>> jetpack("36.4.3")
    '6'
    """
    return None if l4t is None else JETPACK_OF_L4T.get(int(l4t.split(".")[0]))


def _text(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip("\0 \n") or None
