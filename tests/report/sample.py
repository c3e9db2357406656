"""A small report with round figures that the tests change as they need. No figure was measured."""

from __future__ import annotations

from typing import Any

from clp_edge.report.document import build_report

TARGET = "gguf-q4_k_m"


def quality(perplexity: float | None, kl: float, agreement: float) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "perplexity_se": 0.6,
        "kl": kl,
        "kl_se": 0.01,
        "top1_agreement": agreement,
        "tasks": {},
    }


def artifact(name: str, variant: str, size: int, target: str = TARGET) -> dict[str, Any]:
    return {
        "name": name,
        "target": target,
        "variant": variant,
        "path": f"gguf/{name}.gguf",
        "bytes": size,
        "bits_per_weight": 6.2,
        "fallback_tensors": 0,
        "sha256": "ab" * 32,
        "verified": True,
        "verify": {},
    }


def summary(median: float, width: float, n: int = 6) -> dict[str, Any]:
    return {"median": median, "low": median - width, "high": median + width, "n": n}


def run(name: str, variant: str, decode: float) -> dict[str, Any]:
    return {
        "artifact": name,
        "variant": variant,
        "target": TARGET,
        "runtime": "llama.cpp",
        "runtime_version": "1.0",
        "backend": "CPU",
        "test": {"prompt": 512, "generate": 128, "depth": 0},
        "status": "ok",
        "reason": None,
        "prefill_tps": [decode * 4] * 6,
        "decode_tps": [decode] * 6,
        "ttft_ms": [1000.0] * 6,
        "summary": {
            "prefill_tps": summary(decode * 4, 2.0),
            "decode_tps": summary(decode, 1.0),
            "ttft_ms": summary(1000.0, 5.0),
        },
        "load_ms": 100.0,
        "peak_rss_mib": decode * 2,
        "peak_gpu_mib": None,
        "j_per_token": None,
        "bytes_per_token": 90_000_000,
        "ideal_decode_tps": 200.0,
        "mbu": decode / 200.0,
    }


def ratio(median: float, low: float, high: float, ideal: float | None) -> dict[str, Any]:
    return {
        "before": 100.0,
        "after": 100.0 * median,
        "median": median,
        "low": low,
        "high": high,
        "ideal": ideal,
    }


def parts() -> dict[str, Any]:
    """Everything that `build_report` takes, fresh each time."""
    return {
        "command": "clp-edge compress --target gguf-q4",
        "model": {
            "source": "models/Tiny-30.gguf",
            "architecture": "llama",
            "blocks": 30,
            "parameters": 1_000_000,
        },
        "seed": 0,
        "evaluation": {
            "text": "held-back text",
            "sha256": "cd" * 32,
            "tokens": 16_384,
            "sequence_length": 512,
            "removed_as_leaked": 0,
        },
        "search": {
            "method": "exact",
            "criterion": "healed",
            "segment": {"first": 12, "last": 17},
            "segments": [{"first": 12, "last": 17}],
            "dropped": [12, 13, 14, 15, 16, 17],
            "kl_raw": 0.75,
            "kl_healed": 0.33,
            "windows": [
                {"first": 12, "last": 17, "kl_raw": 0.75, "kl_healed": 0.33},
                {"first": 3, "last": 8, "kl_raw": 3.5, "kl_healed": None},
                {"first": 13, "last": 18, "kl_raw": 0.72, "kl_healed": 0.4},
            ],
            "regret": 0.0,
            "stability": 1.0,
            "forward_equivalents": 14.2,
            "seconds": 30.0,
        },
        "heal": {
            "method": "endpoints",
            "trained_blocks": [11, 18],
            "kl_cut": 0.75,
            "kl_refit": 0.33,
            "kl_tuned": None,
            "seconds": 60.0,
        },
        "quality": {
            "dense": quality(20.0, 0.0, 1.0),
            "pruned": quality(60.0, 0.8, 0.6),
            "healed": quality(26.0, 0.3, 0.75),
            "tiny-dense": quality(23.1, 0.05, 0.9),
            "tiny-healed": quality(29.8, 0.35, 0.72),
        },
        "artifacts": [
            artifact("tiny-dense", "dense", 100 * 2**20),
            artifact("tiny-healed", "healed", 84 * 2**20),
        ],
        "bench": {
            "device": {"name": "A laptop"},
            "settings": {
                "threads": 4,
                "batch": 1,
                "rounds": 6,
                "warmup_rounds": 3,
                "power_mode": None,
                "memory_bandwidth_gb_s": 30.0,
            },
            "runs": [run("tiny-dense", "dense", 60.0), run("tiny-healed", "healed", 69.6)],
            "speedup": [
                {
                    "target": TARGET,
                    "runtime": "llama.cpp",
                    "test": {"prompt": 512, "generate": 128, "depth": 0},
                    "before": "tiny-dense",
                    "after": "tiny-healed",
                    "confidence": 0.96875,
                    "n": 6,
                    "prefill": ratio(1.22, 1.20, 1.24, 1.25),
                    "decode": ratio(1.16, 1.12, 1.20, 1.15),
                    "ttft": ratio(1.21, 1.19, 1.23, None),
                }
            ],
        },
        "seconds": {"search": 30.0, "heal": 60.0},
        "peak_memory_mib": {"search": 900.0, "heal": None},
        "environment": {"python": "3.11", "torch": "2.13"},
        "samples": [{"prompt": "Once", "dense": "upon a time", "healed": "upon a | table"}],
        "warnings": [],
    }


def sample_report() -> dict[str, Any]:
    return build_report(**parts())
