"""Options that several verbs share, so that they are spelt and explained once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class PresetName(str, Enum):
    """How much work is done."""

    quick = "quick"
    balanced = "balanced"
    best = "best"


Model = Annotated[
    str | None,
    typer.Argument(
        help="A Hugging Face folder, a hub id in the local cache, or a .gguf file. "
        "Left out: the demo model (SmolLM2-135M-Instruct)."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Output folder.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier run of ours in --out.")]
Resume = Annotated[
    bool,
    typer.Option("--resume/--no-resume", help="Keep the stages of an earlier run that still hold."),
]
Preset = Annotated[PresetName, typer.Option(help="How much work: quick, balanced or best.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is random.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. [default: the physical cores]")]
GpuLayers = Annotated[
    str,
    typer.Option(
        help="Layers that llama.cpp computes on the GPU: a number, or auto, which takes what its "
        "free memory holds; the rest stays on the processor."
    ),
]
Device = Annotated[str, typer.Option(help="Where torch computes: auto, cpu or cuda.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="What torch computes in: auto (float32, with bfloat16 products in search and healing "
        "where the CPU has them), float32, float16, bfloat16."
    ),
]
TuneBlocks = Annotated[
    str,
    typer.Option(
        help="Blocks that tuning trains: near (one before the cut, three after), endpoints (the "
        "two beside it, as CLP has it), or ids of the dense model such as 12,19-21."
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Text to search and heal with: a .txt or .jsonl file, a folder, or hf:NAME. "
        "Your own text is better than the default, text that the model writes itself."
    ),
]
Criterion = Annotated[
    str,
    typer.Option(
        help="What windows are compared by. healed: the KL that is left after the closed-form "
        "refit of each (raw where nothing is to be healed); raw: the KL of the cut itself."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
TensorType = Annotated[
    list[str] | None,
    typer.Option(
        help="REGEX=TYPE: GGUF matrices whose name has a match get that type, such as "
        "'attn_v=q6_k'; repeatable, the first match counts."
    ),
]
Careful = Annotated[
    bool,
    typer.Option("--careful", help="GGUF: more bits for the head and the blocks beside the cut."),
]
Converter = Annotated[
    str,
    typer.Option(
        help="GGUF: who converts the weights: ours, peer (llama.cpp's own converter, in the folder "
        "that CLP_EDGE_PEER names; it knows more families) or auto, ours where it knows the "
        "family. The file is proved against torch either way."
    ),
]
Provider = Annotated[
    str, typer.Option("--ep", help="ONNX: the execution provider to write for: cpu, cuda or dml.")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help="Questions to ask every side: a .jsonl of multiple choice, a line each with context, "
        "choices and label (from 0); repeatable."
    ),
]
TaskItems = Annotated[
    int | None, typer.Option(help="How many of each file's questions. [default: all]")
]
MaxPplRatio = Annotated[
    float | None,
    typer.Option(help="Exit with 4 where a file's perplexity over the dense one's is more."),
]
MaxKl = Annotated[
    float | None,
    typer.Option(help="Exit with 4 where a file's KL to the dense model is more, in nats."),
]
MinRetention = Annotated[
    float | None,
    typer.Option(help="Exit with 4 where a file keeps less of a task beyond chance, as 0.9."),
]
