"""The ceiling of a model file: bytes a token must read, operations a prompt must make.

Decoding one stream is bound by memory bandwidth, so the speed-up that a cut allows is known before
anything runs:

    bytes per token at depth d = bytes of every tensor read whole for one token
                                 (a tied embedding once, as the head; an untied one only a row)
                               + key and value bytes read at depth d
    ideal decode  = bytes(dense) / bytes(pruned)
    ideal prefill = operations(dense) / operations(pruned), the head on the last token only,
                    attention included

A small model is not bound by memory alone: it fits in a cache, its types are multiplied at
different speeds, and every block costs barriers of the threads. `decode_bounds` therefore gives
three ratios: of bytes, of operations, and of what lies in the blocks alone. The last is the most
that a cut can give whatever bounds the speed, since the head and the rest of a token are not cut:
a speed-up above the largest is a mistake, one between needs no explanation. A fourth, where the
last-level cache is known and both files are larger than it: the cache holds a larger share of the
smaller file, and what memory has to bring is what lies beyond it. The share of the bandwidth that
is used is MBU = bytes per token x tokens per second / measured read bandwidth.

>>> card = read_card(Path("model.Q4_0.gguf"))          # doctest: +SKIP
>>> ideal_decode(card, read_card(Path("pruned.Q4_0.gguf")), depth=0)  # doctest: +SKIP
1.154
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_edge.bench.card import AttentionBlock, StaticCard
from clp_edge.bench.onnx_ceiling import GRAPH, read_onnx_card
from clp_edge.errors import ClpEdgeError
from clp_edge.gguf_file.header import GgufHeader, read_header

# Tables that are looked up: one row is read for one token, not the whole tensor.
LOOKUP_TENSORS = frozenset(
    {
        "token_embd.weight",
        "per_layer_token_embd.weight",
        "position_embd.weight",
        "token_types.weight",
    }
)
EMBEDDING = "token_embd.weight"
HEAD = "output.weight"


def ideal_decode(before: StaticCard, after: StaticCard, depth: float = 0.0) -> float:
    """The decode speed-up that the bytes saved allow at a mean depth."""
    return before.bytes_per_token(depth) / after.bytes_per_token(depth)


def decode_bounds(
    before: StaticCard, after: StaticCard, depth: float = 0.0, cache: int | None = None
) -> dict[str, float]:
    """What a cut allows, by what bounds the decode speed.

    `bytes`: memory (`ideal_decode`). `operations`: multiplications, the head included. `blocks`:
    anything that is paid per block or inside of one (barriers, launches, slow types), where the
    rest of a token costs nothing; the largest of the three ratios of blocks, and a hard limit
    unless the cache helps. `cache`, where both read more than `cache` bytes a token: memory, if
    that much of either model stays in the processor's last-level cache from token to token. A
    cache that keeps what was used last keeps less, so this is the most that it can explain.
    """
    at = round(depth)
    head = (2.0 * before.head_elements, 2.0 * after.head_elements)
    whole = (before.prefill_operations(1, at), after.prefill_operations(1, at))
    inside = [
        before.blocks / after.blocks,
        before.block_bytes_per_token(depth) / after.block_bytes_per_token(depth),
        (whole[0] - head[0]) / (whole[1] - head[1]),
    ]
    bounds = {
        "bytes": ideal_decode(before, after, depth),
        "operations": whole[0] / whole[1],
        "blocks": max(inside),
    }
    if cache is not None:
        beyond = [card.bytes_per_token(depth) - cache for card in (before, after)]
        if min(beyond) > 0.0:
            bounds["cache"] = beyond[0] / beyond[1]
    return bounds


def ideal_prefill(before: StaticCard, after: StaticCard, prompt: int, depth: int = 0) -> float:
    """The prefill speed-up that the operations saved allow."""
    return before.prefill_operations(prompt, depth) / after.prefill_operations(prompt, depth)


def mean_decode_depth(generate: int, depth: int = 0) -> float:
    """Mean number of cached positions that `generate` tokens read, one by one, from `depth` on.

    As in llama-bench's tg test, the decode part starts from `depth` tokens, not from the prompt.
    """
    return depth + max(generate - 1, 0) / 2.0


def read_card(path: Path) -> StaticCard:
    """Read the header and the tensor table of a GGUF file.

    Raises ClpEdgeError when the file is no GGUF or lacks the keys that say its shape.
    """
    header = read_header(path)
    architecture, blocks = header.architecture, header.own("block_count")
    if not architecture or blocks is None:
        raise ClpEdgeError(
            f"{path.name} does not say its architecture and block count", "is it a whole model?"
        )
    names = {tensor.name for tensor in header.tensors}
    experts = header.own("expert_count")
    share = header.own("expert_used_count") / experts if experts else 1.0
    read_whole, in_blocks, matmul, head = 0.0, 0.0, 0.0, 0
    for tensor in header.tensors:
        rows = tensor.shape[1] if len(tensor.shape) > 1 else 1
        used = share if "_exps." in tensor.name else 1.0
        is_head = tensor.name == HEAD or (tensor.name == EMBEDDING and HEAD not in names)
        if tensor.name in LOOKUP_TENSORS and not is_head:
            read_whole += tensor.bytes / rows
        else:
            read_whole += tensor.bytes * used
        if tensor.name.startswith("blk."):
            in_blocks += tensor.bytes * used
        if is_head:
            head = tensor.elements
        elif tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            matmul += tensor.elements * used
    return StaticCard(
        path=path,
        architecture=architecture,
        blocks=int(blocks),
        file_bytes=path.stat().st_size,
        weight_bytes_per_token=round(read_whole),
        block_bytes=round(in_blocks),
        block_matmul_elements=round(matmul),
        head_elements=head,
        attention=_attention(header, int(blocks)),
    )


def card_of(path: Path) -> StaticCard | None:
    """The static card of a GGUF file or an ONNX folder; None for what has no tensor table.

    Raises ClpEdgeError when it is damaged.
    """
    if path.is_file() and path.suffix == ".gguf":
        return read_card(path)
    if (path / GRAPH).is_file():
        return read_onnx_card(path)
    return None


def _attention(header: GgufHeader, blocks: int) -> tuple[AttentionBlock, ...]:
    key = header.own
    heads = _per_block(key("attention.head_count"), blocks)
    kv_heads = _per_block(key("attention.head_count_kv") or heads, blocks)
    width = key("embedding_length") or 0
    window, local = key("attention.sliding_window"), key("attention.sliding_window_pattern")
    # Only the per-block array is believed: some carry a window that the runtime ignores.
    is_local = local if isinstance(local, list) else [False] * blocks
    found = []
    for index in range(blocks):
        default = width // heads[index] if heads[index] else 0
        length = key("attention.key_length") or default
        found.append(
            AttentionBlock(
                heads=heads[index],
                kv_heads=kv_heads[index],
                key_length=int(length),
                value_length=int(key("attention.value_length") or default),
                window=int(window) if window and is_local[index] else None,
            )
        )
    return tuple(found)


def _per_block(value: int | Sequence[int] | None, blocks: int) -> list[int]:
    if value is None:
        return [0] * blocks
    return list(value) if isinstance(value, (list, tuple)) else [int(value)] * blocks  # type: ignore[arg-type]
