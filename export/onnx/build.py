"""In the child process: run onnxruntime-genai's builder, and tell how far it is.

It prints hundreds of lines, which go to the child's log; the line of each block becomes progress.
Of the matrices that it quantizes it says nothing, so the making of each new node is watched. Only
`child.py` imports this module to run it.
"""

from __future__ import annotations

import queue
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import Any

import onnx

from clp_edge.export.onnx.configs import adapted
from clp_edge.export.onnx.tokenizer import make_portable

_READING = re.compile(r"Reading layer (\d+)")
_QUANTIZED = re.compile(r"/model/layers\.(\d+)/")
_MAKER = "make_matmul_weight_only_node"
_READ_SHARE = 0.5


class _Printed(TextIOBase):
    """Standard output of the builder: to the log, and each line to `seen`."""

    def __init__(self, seen: Any) -> None:
        self.seen = seen

    def write(self, text: str) -> int:
        sys.stderr.write(text)
        self.seen(text)
        return len(text)


def build(
    folder: str,
    destination: str,
    precision: str,
    provider: str,
    options: dict[str, str],
    metadata: dict[str, str],
    threads: int,
) -> Iterator[tuple[float, str]]:
    """Write `destination` (a folder) from the Hugging Face `folder`; yields (share done, note).

    Raises whatever the builder raises.
    """
    import torch
    from transformers import AutoConfig

    torch.set_num_threads(threads)
    blocks = int(AutoConfig.from_pretrained(folder, local_files_only=True).num_hidden_layers)
    quantizes = precision.startswith("int")
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    share = _READ_SHARE if quantizes else 0.9

    def printed(text: str) -> None:
        if match := _READING.search(text):
            events.put(("part", (share * (int(match[1]) + 1) / blocks, "building the graph")))

    def quantized(node: str) -> None:
        if match := _QUANTIZED.match(node):
            done = share + (0.9 - share) * (int(match[1]) + 1) / blocks
            events.put(("part", (done, "quantizing")))

    def work() -> None:
        try:
            watch_quantizer(quantized)
            with redirect_stdout(_Printed(printed)):
                _create(folder, destination, precision, provider, options)
            make_portable(Path(destination) / "tokenizer.json")
            write_metadata(Path(destination) / "model.onnx", metadata)
            events.put(("done", None))
        except BaseException as error:  # handed to the caller's thread, which raises it
            events.put(("error", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    last: tuple[float, str] | None = None
    while (event := events.get())[0] == "part":
        if event[1] != last:  # a block has several matrices
            yield event[1]
        last = event[1]
    if event[0] == "error":
        raise event[1]


def watch_quantizer(seen: Callable[[str], None]) -> None:
    """Have each matrix's node name told; without that function (another release) nothing is."""
    from onnxruntime.quantization.neural_compressor import weight_only

    original = getattr(weight_only, _MAKER, None)
    if original is None:
        return

    def watched(node: Any, *arguments: Any, **named: Any) -> Any:
        seen(node.name)
        return original(node, *arguments, **named)

    setattr(weight_only, _MAKER, watched)


def _create(
    folder: str, destination: str, precision: str, provider: str, options: dict[str, str]
) -> None:
    from onnxruntime_genai.models import builder

    said = [f"{key}={value}" for key, value in {"hf_token": "false", **options}.items()]
    with tempfile.TemporaryDirectory(prefix="clp-edge-onnx-") as cache:
        prepared = builder.parse_extra_options(
            None, folder, destination, precision, provider, cache, said
        )
        details = prepared["hf_details"]
        details["hf_config"] = adapted(details["hf_config"])
        tie_eight_bits(sys.modules["builders"].Model)
        builder.create_model(None, folder, destination, precision, provider, cache, **prepared)


def tie_eight_bits(model_class: Any) -> None:
    """Let an 8-bit head serve as the embedding too, as the builder does for 4 bits.

    Builder 0.18 writes a second, float32 copy of a tied matrix for int8 (113 MB more for the demo
    model), though its own mixed 4-bit recipe already shares an 8-bit head.
    """
    if getattr(model_class, "clp_edge_ties", False):
        return
    original = model_class.make_tied_embeddings_init

    def tied(self: Any, config: Any) -> None:
        original(self, config)
        shared = self.extra_options.get("shared_embeddings", False)
        whole = not self.exclude_embeds and not self.exclude_lm_head
        if shared and whole and self.is_lm_head_quantized():
            self.tied_quantized_embeddings = True

    model_class.make_tied_embeddings_init = tied
    model_class.clp_edge_ties = True


def write_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Add metadata_props to the graph; the weights' file is not touched."""
    model = onnx.load(str(path), load_external_data=False)
    known = {entry.key: entry for entry in model.metadata_props}
    for key, value in metadata.items():
        entry = known.get(key) or model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
