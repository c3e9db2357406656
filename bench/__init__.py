"""The latency suite: dense against pruned on the device in front of it, with its ceiling.

The ceiling first (`ceiling`, `bandwidth`), then the measurement (`runner`), then what may be said
of it (`statistics`). The room knows files only: how they were pruned is not its business.

>>> from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
>>> items = [BenchItem("dense", path, "dense", "gguf-q4_0")]                # doctest: +SKIP
>>> run_bench(items, BenchSettings(rounds=5)).runs[0].status                # doctest: +SKIP
'ok'
"""
