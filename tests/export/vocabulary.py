"""A GGUF file that holds a tokenizer and nothing else, and llama.cpp's ids from it, in a child."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

_CHILD = """
import ctypes, json, sys
import llama_cpp
texts = json.load(sys.stdin)
params = llama_cpp.llama_model_default_params()
params.vocab_only = True
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params)
assert model, "not loaded"
vocab = llama_cpp.llama_model_get_vocab(model)
found = []
for text, special in texts:
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 16))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), special, True)
    assert count >= 0
    found.append(list(ids[:count]))
print("IDS" + json.dumps(found))
"""


def write_vocabulary(path: Path, entries: Sequence[Any]) -> Path:
    """Write the keys as a tensor-less GGUF file."""
    writer = GGUFWriter(path, "llama")
    for entry in entries:
        writer.add_key_value(entry.key, entry.value, entry.kind, entry.sub_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def llama_cpp_ids(path: Path, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
    """Token ids of each (text, whether BOS and EOS are added)."""
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)],
        input=json.dumps(list(texts)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.split("IDS", 1)[1])
