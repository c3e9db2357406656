"""Our keys of real tokenizers against llama.cpp: `make test-tokenizers` fetches and runs this.

    python -m tests.peer.real_tokenizers FOLDER...

Each FOLDER holds tokenizer.json and tokenizer_config.json. Prints one row of a table for each:
texts with equal ids, of all texts. Exit code 1 where any differs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from clp_edge.errors import ClpEdgeError
from clp_edge.export.gguf import tokenizer as ours
from clp_edge.export.reference_text import HARD_TEXTS
from clp_edge.gguf_file.header import read_header
from clp_edge.gguf_file.tokenizer import gguf_tokenizer
from clp_edge.models.source import folder_tokenizer
from tests.export.vocabulary import llama_cpp_ids, write_vocabulary

# where merges by score and merges by rank could part: long runs, runs inside words, halves
RUNS = tuple(
    text
    for n in (2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 63, 70)
    for text in (" " * n + "x", "x" + " " * n, "\n" * n, "\t" * n, "a" * n, "=" * n, "ab" * n)
)
WORDS = (
    "Antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "unbelievableness rereread counterrevolutionaries Donaudampfschifffahrtsgesellschaft",
    "for (int i = 0; i < (int)xs.size(); ++i) { sum += xs[i] * 0x1F; } // ∑",
    "\u2581 literal \u2581\u2581 marks <0x0A> and <0xFF>",
    "zażółć gęślą jaźń; Жили-были; ελληνικά; ქართული; አማርኛ; 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
)
MARKS = "हिन्दी; தமிழ்; ไทยคำ; e\u0301"
"""Where llama.cpp is known to differ and `notes` says so: counted, not required."""


def check(folder: Path, scratch: Path) -> tuple[str, bool]:
    """(one row of the table, whether all ids are equal)."""
    begin = time.perf_counter()
    hf = folder_tokenizer(folder)
    size = max(hf.get_vocab().values()) + 1
    config = SimpleNamespace(vocab_size=size, eos_token_id=None)
    name = next((p for p in reversed(folder.parts) if p not in ("models", "package")), str(folder))
    try:
        entries = ours.entries(config, hf)
    except ClpEdgeError as error:
        return f"| {name} | refused: {error.cause} | | | | | |", False
    path = write_vocabulary(scratch / "vocabulary.gguf", entries)
    texts = [(text, False) for text in (*HARD_TEXTS, *WORDS, *RUNS)]
    texts += [(HARD_TEXTS[0], True), ("a", True)]
    turn = ours.chat_turn(hf)
    texts += [(turn, False)] if turn else []
    texts.append((MARKS, False))
    theirs = llama_cpp_ids(path, texts)
    written = ours.as_written(hf)
    back = gguf_tokenizer(read_header(path))
    wrong, unread, marks = [], [], ""
    for (text, special), ids in zip(texts, theirs, strict=True):
        if text == MARKS:
            marks = "yes" if hf.encode(text, add_special_tokens=False) == ids else "no"
            continue
        if written.encode(text, add_special_tokens=special) != ids:
            wrong.append(text)
        if back.encode(text, add_special_tokens=special) != ids:
            unread.append(text)
    count = len(texts) - 1
    keys = {entry.key.rpartition(".")[2]: entry.value for entry in entries}
    row = (
        f"| {name} | {keys['model']}, {keys['pre']} | {size} | {count - len(wrong)} of "
        f"{count} | {count - len(unread)} | {marks} | {time.perf_counter() - begin:.1f} |"
    )
    for label, found in (("differs", wrong), ("read back differs", unread)):
        row += "".join(f"\n  {label}: {json.dumps(t[:60], ensure_ascii=False)}" for t in found[:8])
    return row, not wrong


def main(folders: list[str]) -> int:
    """Check each folder, print the table; the exit code."""
    print("| tokenizer | model, pre | tokens | equal ids | read back | combining marks | s |")
    print("|---|---|---|---|---|---|---|")
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for folder in folders:
            row, equal = check(Path(folder), Path(scratch))
            print(row, flush=True)
            good = good and equal
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
