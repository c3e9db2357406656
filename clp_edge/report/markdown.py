"""report.md: the report for people, every figure with what is needed to believe it.

`draw` writes any blocks as Markdown; of a plot it shows the table, where it has one.

>>> from clp_edge.records import ModelRecord
>>> from clp_edge.report.document import build_report
>>> model = ModelRecord("SmolLM2", "llama", blocks=30, parameters=134_515_008)
>>> report = build_report(command="clp-edge compress", model=model, seed=0)
>>> render_markdown(report).splitlines()[0]
'# What clp-edge did to SmolLM2'
"""

from __future__ import annotations

from collections.abc import Iterable

from clp_edge.records import Report
from clp_edge.report import format as write
from clp_edge.report.blocks import Answers, Block, Code, Heading, Items, Plot, Table, Text
from clp_edge.report.facts import model_name
from clp_edge.report.sections import report_blocks

ON_THE_PAGE = ("cards",)
"""Sections too long for a short text; report.html has them."""


def render_markdown(report: Report) -> str:
    """The whole of report.md: the title, the verdict, the command, then every section."""
    head: list[Block] = [
        Heading(f"What clp-edge did to {model_name(report)}", level=1),
        Text(report.verdict, style="strong"),
        Code(report.command),
    ]
    return draw([*head, *report_blocks(report, ON_THE_PAGE)]) + "\n"


def draw(blocks: Iterable[Block]) -> str:
    """The blocks as Markdown, an empty line between them."""
    return "\n\n".join(part for part in map(_draw, blocks) if part)


def _draw(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return _text(block)
    if isinstance(block, Items):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Plot):
        return _table(block.table) if block.table is not None else ""
    if isinstance(block, Answers):
        return draw(_answers(block))
    return _code(block)


def _answers(block: Answers) -> Iterable[Block]:
    yield Text("", lead="Prompt")
    yield Text(block.prompt, style="quote")
    for side, by, text in block.said:
        yield Text(f"({by})", lead=side)
        yield Text(text, style="quote")


def _text(block: Text) -> str:
    if block.style == "quote":
        return "\n".join(f"> {line}" for line in block.text.strip().splitlines() or [""])
    said = f"**{block.text}**" if block.style == "strong" and block.text else block.text
    return " ".join(part for part in (f"**{block.lead}**" if block.lead else "", said) if part)


def _table(block: Table) -> str:
    width = len(block.header)
    lines: list[tuple[str, ...]] = []
    for heading, rows in block.groups():
        if heading:
            lines.append((f"**{heading}**", *[""] * (width - 1)))
        lines += rows
    return write.table(block.header, lines)


def _code(block: Code) -> str:
    if block.language:
        return f"```{block.language}\n{block.text}\n```"
    return "\n".join(f"    {line}" for line in block.text.splitlines())
