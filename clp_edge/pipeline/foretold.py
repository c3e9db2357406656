"""What the files of a run will say of themselves, before the run: their sizes depend on it.

Where the blocks are named the prediction is the metadata that is written, byte for byte. Where they
are still to be found, the last window that is possible stands for them and `auto` for the method:
the few characters that differ are less than the 32 bytes that a GGUF file's head is padded to. With
`--careful` the types of some matrices depend on where the cut is, too.
"""

from __future__ import annotations

import clp_edge
import clp_edge.export as exporters
from clp_edge.config import CompressConfig, FileConfig
from clp_edge.models.source import Source
from clp_edge.records import Provenance
from clp_edge.records.learning import Span
from clp_edge.registry import METHODS, RUNGS
from clp_edge.segment import Segment


def provenance_of(
    config: CompressConfig, source: Source, name: str, *, blocks: int, count: int
) -> Provenance:
    """What `compress` will write into the healed folder of `blocks` - `count` blocks."""
    named = config.cut.segment
    gone = named or Segment.from_start(max(0, blocks - count - 1), count)
    method = "given" if named else METHODS.choose(config.search.method)
    return Provenance(
        version=clp_edge.__version__,
        source=source.spec or source.name,
        source_name=source.name,
        name=name,
        blocks_before=blocks,
        segments=(Span(gone.first, gone.last),),
        search_method=config.cut.found_by or method,
        heal_method=RUNGS.choose(config.heal.rungs),
    )


def options_of(files: FileConfig, says: Provenance | None) -> exporters.ExportOptions:
    """What the exporters are asked for; the blocks beside a cut are those of the written model."""
    beside: tuple[int, ...] = ()
    if files.careful and says is not None:
        span = says.segments[0]
        left = says.blocks_before - (span.last - span.first + 1)
        beside = tuple(i for i in (span.first - 1, span.first) if 0 <= i < left)
    return exporters.ExportOptions(
        tensor_types=files.typed,
        careful_blocks=beside,
        careful_head=files.careful,
        provider=files.provider,
        converter=files.converter,
        gpu_layers=files.gpu_layers,
    )
