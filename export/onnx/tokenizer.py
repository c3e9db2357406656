"""A tokenizer.json that onnxruntime-genai reads as transformers does.

Its `Digits` step splits decimal digits alone, where tokenizers splits every number sign (², ½, Ⅷ):
ids differ where the model's merges join a space with the first byte of such a sign. The same step
written as a regular expression is read rightly, when GPT-2's own pattern is written out as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NUMBER = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    rule = {"Regex": pattern}
    return {"type": "Split", "pattern": rule, "behavior": "Isolated", "invert": False}


def portable_steps(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Digits one by one, then bytes with GPT-2's pattern (SmolLM): as two patterns and bare bytes.

    Any other sequence comes back as it is.
    """
    if [step["type"] for step in steps] != ["Digits", "ByteLevel"]:
        return steps
    digits, by_bytes = steps
    if not digits.get("individual_digits") or not by_bytes.get("use_regex", True):
        return steps
    if by_bytes.get("add_prefix_space"):  # the space would be added to every piece
        return steps
    return [_split(NUMBER), _split(GPT2), {**by_bytes, "use_regex": False}]


def make_portable(path: Path) -> bool:
    """Rewrite a tokenizer.json in place where it needs it; whether it did."""
    if not path.is_file():
        return False
    said = json.loads(path.read_text(encoding="utf-8"))
    before = said.get("pre_tokenizer") or {}
    if before.get("type") != "Sequence":
        return False
    after = portable_steps(before["pretokenizers"])
    if after == before["pretokenizers"]:
        return False
    said["pre_tokenizer"] = {**before, "pretokenizers": after}
    path.write_text(json.dumps(said, ensure_ascii=False, indent=2), encoding="utf-8")
    return True
