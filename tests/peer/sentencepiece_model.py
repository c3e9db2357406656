"""tokenizer.json of a SentencePiece BPE -> tokenizer.model, which is all the converter reads.

Runs in a child process with the converter's folder on its path, where sentencepiece and protobuf
are: `python sentencepiece_model.py tokenizer.json tokenizer.model`. Scores are those that the
trainer gives, minus the rank among the merged pieces.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def pieces(whole: dict[str, Any]) -> list[tuple[str, float, int]]:
    """(piece, score, type) by id."""
    added = {token["content"]: token["special"] for token in whole["added_tokens"]}
    found, rank = [], 0
    for text, _ in sorted(whole["model"]["vocab"].items(), key=lambda item: item[1]):
        if text == whole["model"]["unk_token"]:
            found.append((text, 0.0, UNKNOWN))
        elif text in added:
            found.append((text, 0.0, CONTROL if added[text] else USER_DEFINED))
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            found.append((text, 0.0, BYTE))
        else:
            found.append((text, -float(rank), NORMAL))
            rank += 1
    return found


def main(source: Path, destination: Path) -> None:
    """Write the model."""
    from sentencepiece import sentencepiece_model_pb2

    whole = json.loads(source.read_text(encoding="utf-8"))
    model = sentencepiece_model_pb2.ModelProto()
    found = pieces(whole)
    for text, score, kind in found:
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = sum(kind == BYTE for *_, kind in found) == 256
    model.trainer_spec.vocab_size = len(found)
    for name in ("unk", "bos", "eos", "pad"):
        named = [i for i, (text, _, _) in enumerate(found) if text == f"<{name}>"]
        setattr(model.trainer_spec, f"{name}_id", named[0] if named else -1)
        setattr(model.trainer_spec, f"{name}_piece", f"<{name}>")
    steps = json.dumps(whole["normalizer"])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = "Prepend" in steps
    model.normalizer_spec.remove_extra_whitespaces = False
    destination.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
