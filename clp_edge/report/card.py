"""The model card: README.md of the output folder, in the form that the Hugging Face hub reads.

>>> from clp_edge.records import ModelRecord
>>> from clp_edge.report.document import build_report
>>> known = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}
>>> model = ModelRecord("SmolLM2", "llama", blocks=30, parameters=134_515_008, **known)
>>> report = build_report(command="clp-edge compress", model=model, seed=0)
>>> render_card(report).splitlines()[1:3]
['base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"', 'license: "apache-2.0"']
"""

from __future__ import annotations

import json
import re

from msgspec import UNSET

from clp_edge.records import ModelRecord, Report
from clp_edge.report import format as write
from clp_edge.report.facts import all_warnings, model_name
from clp_edge.report.markdown import draw
from clp_edge.report.summary import summary_block

PYTHON_USAGE = """\
With llama-cpp-python:

```python
from llama_cpp import Llama

model = Llama(model_path="{path}", n_ctx=2048)
print(model("The capital of France is", max_tokens=64)["choices"][0]["text"])
```"""
HF_USAGE = """\
The Hugging Face folder, for further work:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("hf")
tokenizer = AutoTokenizer.from_pretrained("hf")
```"""


def render_card(report: Report) -> str:
    """The whole card."""
    warnings = all_warnings(report)
    parts = [
        _front_matter(report),
        f"# {model_name(report)}, pruned",
        report.verdict,
        "## What was removed",
        _removed(report),
        "## How it was healed",
        _healed(report),
        "## Figures",
        draw([summary_block(report)]),
        "report.md says how they were measured, report.json holds every sample.",
        "## Use it",
        *_usage(report),
        "## Make it again",
        f"    {report.command}",
        f"clp-edge {report.version}, seed {report.seed}.",
        "## Licence and base model",
        _licence(report),
        "## Warnings",
        "\n".join(f"- {text}" for text in [*warnings, *_always(report)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(report: Report) -> str:
    model = report.model
    lines = ["---"]
    if model.base_model:
        lines.append(f"base_model: {json.dumps(model.base_model)}")
    lines += _front_licence(model)
    lines += ["pipeline_tag: text-generation", "tags:", "- clp-edge", "- pruned"]
    suffixes = {artifact.path.rpartition(".")[2] for artifact in report.artifacts}
    if "gguf" in suffixes:
        lines.append("- gguf")
    return "\n".join([*lines, "---"])


def _front_licence(model: ModelRecord) -> list[str]:
    """The hub knows licences by id: what is no id is "other" with a name."""
    name, link = model.license, model.license_link
    if not isinstance(name, str) or not name:
        return []
    known = re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) is not None and not link
    lines = [f"license: {json.dumps(name if known else 'other')}"]
    if not known and name != "other":
        lines.append(f"license_name: {json.dumps(name)}")
    return [*lines, f"license_link: {json.dumps(link)}"] if link else lines


def _removed(report: Report) -> str:
    search, model = report.search, report.model
    if search is None or not search.dropped:
        return "Nothing."
    gone = write.blocks(search.segments, search.dropped, model.blocks)
    left = model.blocks - len(search.dropped)
    return (
        f"{gone} of `{model.source}` ({model.architecture}, {model.parameters:,} "
        f"parameters before the cut); {left} are left. Ids are 0-based, both ends are inclusive. "
        f"Chosen by {search.method}."
    )


def _healed(report: Report) -> str:
    heal = report.heal
    if heal is None or heal.method == "none":
        return "It was not healed: the blocks are cut out and nothing else was changed."
    trained = ", ".join(str(block) for block in heal.trained_blocks) or "none"
    steps = [f"after the cut {write.fixed(heal.kl_cut, 3)}"]
    if heal.rungs:
        kept = [rung for rung in heal.rungs if rung.kept]
        steps += [f"after the rung `{one.name}` {write.fixed(one.kl_after, 3)}" for one in kept]
    else:  # none was climbed, or the report is from before there were rungs
        steps.append(f"after the closed-form refit {write.fixed(heal.kl_refit, 3)}")
        steps.append(f"after tuning {write.fixed(heal.kl_tuned, 3)}")
    return (
        f"Method: {heal.method}. Blocks changed (ids of the dense model): {trained}. "
        f"KL to the dense model, in nats: {', '.join(steps)}. All of it is folded into the "
        "weights: nothing extra is needed to run the model."
    )


def _usage(report: Report) -> list[str]:
    """How to run the first healed artifact of each kind, then the Hugging Face folder."""
    texts: list[str] = []
    shown: set[str] = set()
    for artifact in report.artifacts:
        kind = artifact.path.partition("/")[0]  # gguf, onnx or onnx-optimum
        if artifact.variant != "healed" or kind in shown:
            continue
        shown.add(kind)
        if artifact.path.endswith(".gguf"):
            from clp_edge.export.gguf.usage import usage

            texts += [usage(artifact.path), PYTHON_USAGE.replace("{path}", artifact.path)]
        elif kind.startswith("onnx"):
            from clp_edge.export.onnx.usage import usage as onnx_usage

            block = onnx_usage(artifact.path, target=artifact.target)
            texts.append(f"With ONNX Runtime:\n\n{block.rstrip()}")
    return [*texts, HF_USAGE]


def _licence(report: Report) -> str:
    model = report.model
    base, where = model.base_model or model.source, model.license_stated_in
    if model.license:
        link = f", {model.license_link}" if model.license_link else ""
        stated = f"its licence, {model.license}{link}, applies to this model too"
        stated += f" (read from the source's {where})" if where else ""
    elif model.license is not UNSET:
        stated = "the source's own files state no licence; look it up before passing this model on"
    else:
        stated = "its licence was not looked up; do so before passing this model on"
    return f"The base model is `{base}`: {stated}."


def _always(report: Report) -> list[str]:
    """What is true of every pruned model."""
    texts = [
        "Perplexity can look fine while arithmetic, JSON or languages break: try your own task."
    ]
    if report.bench is not None:
        texts.append("Speeds are those of the device in report.md; measure on yours.")
    return texts
