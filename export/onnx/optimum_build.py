"""In the child process: Optimum's export of a Hugging Face folder, and its dynamic 8-bit quantizer.

The graph is plain ONNX with past key values, which any runtime can feed. Only the products with a
constant matrix become 8-bit, and not all of those (`kept`): ORTQuantizer by itself takes every
MatMul, the rotation angles (positions times frequencies, useless in 8 bits) and the attention's own
products included.
Only `child.py` imports this module to run it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from clp_edge.export.onnx.build import write_metadata
from clp_edge.export.onnx.optimum_embedding import quantize_embedding

GRAPH = "model.onnx"
_SINGLE_FILE_BYTES = 1_500_000_000
"""A protobuf file ends at 2 GiB: beyond this the weights lie beside the graph."""


def build(
    folder: str,
    destination: str,
    kind: str,
    kept: list[str],
    metadata: dict[str, str],
    threads: int,
) -> Iterator[tuple[float, str]]:
    """Write `destination` as "fp32", "fp16" or "int8", in which the products `kept` (names of
    nodes) stay floats; yields (share done, note).

    Raises whatever Optimum raises.
    """
    import torch
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig

    torch.set_num_threads(threads)
    quantizes = kind == "int8"
    with tempfile.TemporaryDirectory(prefix="clp-edge-optimum-") as place:
        made = place if quantizes else destination
        yield 0.0, "tracing the model"
        main_export(
            folder,
            made,
            task="text-generation-with-past",
            device="cpu",
            dtype="fp16" if kind == "fp16" else "fp32",
            framework="pt",
            library_name="transformers",
            local_files_only=True,
            do_validation=False,
            # It would join a tied head and embedding: the head's product then has no constant
            # side, and would be quantized anew for each token.
            no_post_process=quantizes,
        )
        if quantizes:
            yield 0.6, "quantizing"
            _quantize(Path(made), Path(destination), kept)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            quantize_embedding(
                Path(destination) / GRAPH,
                tied=bool(config.tie_word_embeddings),
                external=is_large(Path(made)),
            )
        yield 0.9, "writing metadata"
        write_metadata(Path(destination) / GRAPH, metadata)


def _quantize(made: Path, destination: Path, kept: list[str]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantizationMode, QuantType
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import QuantizationConfig

    wanted = QuantizationConfig(
        is_static=False,
        format=QuantFormat.QOperator,
        mode=QuantizationMode.IntegerOps,
        activations_dtype=QuantType.QUInt8,
        weights_dtype=QuantType.QInt8,
        per_channel=True,
        nodes_to_quantize=[name for name in weight_products(made / GRAPH) if name not in kept],
        operators_to_quantize=["MatMul"],
    )
    quantizer = ORTQuantizer.from_pretrained(str(made), file_name=GRAPH)
    quantizer.quantize(
        wanted, str(destination), file_suffix="", use_external_data_format=is_large(made)
    )
    generation = made / "generation_config.json"
    if generation.is_file():  # Optimum forgets it, and with it where a text ends
        (destination / generation.name).write_bytes(generation.read_bytes())


def is_large(made: Path) -> bool:
    """Whether the 8-bit weights of this float graph lie beside it: a file of 2 GiB is the end."""
    return sum(file.stat().st_size for file in made.glob("*.onnx*")) > 4 * _SINGLE_FILE_BYTES


def weight_products(path: Path) -> list[str]:
    """Names of the products with a constant matrix."""
    graph: Any = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [n.name for n in graph.node if n.op_type == "MatMul" and n.input[1] in constants]


def generate(folder: str, prompt: list[int], new_tokens: int) -> list[int]:
    """The greedy continuation by Optimum's ORTModelForCausalLM, without the prompt."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    model: Any = ORTModelForCausalLM.from_pretrained(folder, local_files_only=True)
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
    )
    return [int(token) for token in made[0, len(prompt) :]]
