"""Where a cut model comes from: a small file in its Hugging Face folder, read by the verbs.

So a folder that was cut on one machine can be healed on a second and exported on a third, and the
exported file says the same of itself as one that `compress` wrote in one go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clp_edge
from clp_edge.durable import write_text
from clp_edge.models.source import Source
from clp_edge.records import Provenance, RecordError, SearchRecord, decode, encode
from clp_edge.segment import Segment

FILE = "clp_edge_provenance.json"


def write(folder: Path, provenance: Provenance) -> None:
    """Put it into a Hugging Face folder, in place of an earlier one."""
    write_text(folder / FILE, encode(provenance).decode())


def read(folder: Path) -> Provenance | None:
    """What a folder says of itself; None where it says nothing that can be read."""
    try:
        return decode((folder / FILE).read_bytes(), Provenance)
    except (OSError, RecordError):
        return None


def of_cut(
    source: Source,
    name: str,
    blocks_before: int,
    found: SearchRecord,
    *,
    search_method: str,
    heal_method: str,
) -> Provenance:
    """The provenance of a model that was cut from `source`."""
    return Provenance(
        version=clp_edge.__version__,
        source=source.spec or source.name,
        source_name=source.name,
        name=name,
        blocks_before=blocks_before,
        segments=found.segments,
        search_method=search_method,
        heal_method=heal_method,
    )


def file_metadata(provenance: Provenance) -> dict[str, Any]:
    """What an exported file of a cut model says of itself."""
    spans = provenance.segments
    return {
        "version": provenance.version,
        "source": provenance.source_name,
        "variant": "healed",
        "general.name": provenance.name,
        "segment": ",".join(str(Segment(span.first, span.last)) for span in spans),
        "blocks_before": provenance.blocks_before,
        "method": f"search {provenance.search_method}, heal {provenance.heal_method}",
    }


def dense_metadata(name: str) -> dict[str, Any]:
    """What an exported file of a dense model says of itself."""
    return {
        "version": clp_edge.__version__,
        "source": name,
        "variant": "dense",
        "general.name": name,
    }
