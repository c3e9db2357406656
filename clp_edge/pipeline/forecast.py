"""What a search would cost on this machine, before any of it: passes, memory and time.

Passes follow from the model's sizes, as the search itself predicts them. Time is those FLOPs at the
rate of a short matrix product measured here, in the dtype that will compute; the search reaches a
half to all of that rate, so it is said as "about".
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from clp_edge.config import CompressConfig
from clp_edge.pipeline.preflight import Plan
from clp_edge.registry import METHODS
from clp_edge.search import choose_method, window_starts
from clp_edge.search.cost import Cost, Size

MEASURED_S = 0.3
SIDE = 1024


@dataclass(frozen=True)
class Forecast:
    """The search for one model."""

    method: str
    passes: float
    """dense forward passes over the search's text, the refits' pass among them"""
    tokens: int
    state_bytes: int
    """the block states; past half of the free memory they go into files"""
    flops: float
    seconds: float


def forecast_search(config: CompressConfig, plan: Plan, *, rate: float | None = None) -> Forecast:
    """Args: rate, FLOPs a second; None: measured now, in about a third of a second."""
    length = plan.sequence_length
    sequences = max(1, config.search.tokens // length)
    text = plan.config.get_text_config()
    head = text.vocab_size * text.hidden_size
    cost = Cost(plan.blocks, 2.0 * plan.block_parameters, 2.0 * head)
    size = Size(cost, plan.count, window_starts(plan.blocks, plan.count), sequences, length)
    method, _ = choose_method(config.search.method, size)
    passes = METHODS.load(method).predict(size)
    if config.search.criterion == "healed" and config.heal.rungs != "none":
        passes += config.search.refit_tokens / (sequences * length)
    flops = passes * sequences * length * cost.forward
    states = (plan.blocks + 1) * sequences * length * text.hidden_size * plan.compute.itemsize
    rate = measured_rate(plan.device, plan.compute) if rate is None else rate
    return Forecast(method, passes, sequences * length, states, flops, flops / rate)


def measured_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a square matrix product there, the best of a few."""
    a = torch.randn(SIDE, SIDE, device=device).to(dtype)
    best, spent = 0.0, 0.0
    while spent < MEASURED_S:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        _ = a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        spent += took
        best = max(best, 2.0 * SIDE**3 / took)
    return best
