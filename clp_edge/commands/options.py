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
Device = Annotated[str, typer.Option(help="Where torch computes: auto, cpu or cuda.")]
Dtype = Annotated[
    str,
    typer.Option(help="What torch computes in: auto (float32), float32, float16, bfloat16."),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Text to search and heal with: a .txt or .jsonl file, a folder, or hf:NAME. "
        "Your own text is better than the default, text that the model writes itself."
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
Provider = Annotated[
    str, typer.Option("--ep", help="ONNX: the execution provider to write for: cpu, cuda or dml.")
]
