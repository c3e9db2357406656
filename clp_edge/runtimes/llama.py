"""llama.cpp inside the child process, through llama-cpp-python's low-level C interface.

Every return code is looked at. `time_once` follows llama-bench: random token ids, one sequence, no
sampling, a synchronize at the end of what is timed (idea: llama.cpp, tools/llama-bench).
Only `child.py` imports this module to run it; the parent never loads llama_cpp.
"""

from __future__ import annotations

import ctypes
import random
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clp_edge.errors import MissingDependencyError, UsageError
from clp_edge.runtimes.base import ArtifactInfo, Timing, each_ms
from clp_edge.runtimes.memory import peak_rss_mib
from clp_edge.runtimes.offload import NO_BACKEND, NO_DEVICE, Gpu
from clp_edge.runtimes.scoring import Score, check, score_rows

PIP_LINE = "pip install 'clp-edge[gguf]'"
_PART_BYTES = 256 * 1024 * 1024
_KV_TYPES = {"f32": 0, "f16": 1}  # ggml_type
_FLASH_OFF = 0
_QUANTIZE_BYTES = 256 * 1024 * 1024
"""Of one tensor's rows in memory at once; llama.cpp's default is 8 GiB, the whole tensor."""
BRANCHES = 16
"""Continuations of one context that are computed beside each other."""


def load_library() -> ModuleType:
    """Import llama_cpp and let it log to standard error, which is the log file in the child."""
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingDependencyError(
            f"llama-cpp-python is not installed ({error})", PIP_LINE
        ) from error
    except (OSError, RuntimeError) as error:  # its shared library does not load here
        raise MissingDependencyError(
            f"llama-cpp-python does not load ({error})", f"{PIP_LINE} --force-reinstall"
        ) from error
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def version_of(library: ModuleType) -> str:
    """The binding's version, and llama.cpp's own where it tells it."""
    core = getattr(library, "llama_version", None)
    suffix = f" (llama.cpp {core().decode()})" if core is not None else ""
    return f"llama-cpp-python {library.__version__}{suffix}"


def backend_of(library: ModuleType) -> str:
    """The first backend that is no CPU, such as CUDA; "CPU" where nothing can be offloaded."""
    if not library.llama_supports_gpu_offload():
        return "CPU"
    names = re.findall(r"(\w+) :", library.llama_print_system_info().decode())
    return next((name for name in names if name != "CPU"), "CPU")


def model_params(library: Any) -> Any:
    """How a file is loaded: the defaults, and plain buffers where AMX would be used.

    llama.cpp's AMX kernels die of SIGSEGV or SIGILL at the first prompt in many builds: the
    compiler drops the tile configuration (llama.cpp PR #26954). Without the extra buffers AVX-512
    computes instead.
    """
    params = library.llama_model_default_params()
    if "AMX_INT8 = 1" in library.llama_print_system_info().decode():
        params.use_extra_bufts = False
    return params


_GPU_KINDS = (1, 2)  # ggml_backend_dev_type: a GPU with memory of its own, one that shares it


def gpu_memory() -> Gpu | str:
    """The GPUs that this build of llama.cpp would use, or why there is none."""
    library: Any = load_library()
    if not library.llama_supports_gpu_offload():
        return NO_BACKEND
    found = [one for one in backend_devices() if one[0] in _GPU_KINDS]
    if not found:
        return NO_DEVICE
    names = " + ".join(name for _, name, _, _ in found)
    free, total = sum(one[2] for one in found), sum(one[3] for one in found)
    return Gpu(backend_of(library), names, free, total)


def backend_devices() -> list[tuple[int, str, int, int]]:
    """(type, description, free bytes, all bytes) of each device of ggml's registry.

    The binding has no names for these calls, so they are taken from the shared library itself.
    """
    from llama_cpp._ggml import libggml

    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    libggml.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    libggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    pointer = ctypes.POINTER(ctypes.c_size_t)
    libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, pointer, pointer]
    libggml.ggml_backend_dev_memory.restype = None
    found = []
    for index in range(libggml.ggml_backend_dev_count()):
        device = libggml.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        libggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        said = libggml.ggml_backend_dev_description(device).decode("utf-8", "replace")
        kind = int(libggml.ggml_backend_dev_type(device))
        found.append((kind, said, free.value, total.value))
    return found


def describe_library() -> str:
    """ "version, backend", after the library was really loaded."""
    library = load_library()
    return f"{version_of(library)}, backend {backend_of(library)}"


class LlamaEngine:
    """A GGUF file open in llama.cpp: the object that answers a Session's calls in the child."""

    def __init__(
        self,
        path: str,
        threads: int,
        context: int,
        kv_type: str,
        batch: int,
        gpu_layers: int = 0,
        reason: str = "",
    ) -> None:
        self.library: Any = load_library()
        self.gpu_layers = gpu_layers
        begin = time.perf_counter()
        params = model_params(self.library)
        params.n_gpu_layers = gpu_layers
        self.model = self.library.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = self.library.llama_model_get_vocab(self.model)
        self.vocabulary = int(self.library.llama_vocab_n_tokens(self.vocab))
        self.part = max(1, min(batch, _PART_BYTES // (4 * max(1, self.vocabulary))))
        self._how = (threads, context, kv_type, batch)
        self.context = self._open_context(*self._how)
        # llama.cpp aborts on more sequences than it may make logits for at once
        self._branches = max(1, min(BRANCHES, self.part))
        self._branched: Any = None
        load_ms = (time.perf_counter() - begin) * 1e3
        self.memory = self.library.llama_get_memory(self.context)
        self.size = int(self.library.llama_n_ctx(self.context))
        self.batch = int(self.library.llama_n_batch(self.context))
        self.info = ArtifactInfo(
            runtime="llama.cpp",
            runtime_version=version_of(self.library),
            backend=backend_of(self.library) if gpu_layers else "CPU",
            architecture=self._metadata("general.architecture"),
            blocks=int(self.library.llama_model_n_layer(self.model)),
            context_length=int(self.library.llama_model_n_ctx_train(self.model)),
            vocabulary=self.vocabulary,
            load_ms=load_ms,
            bytes=Path(path).stat().st_size,
            gpu_layers=gpu_layers,
            backend_reason=reason,
        )

    def _open_context(
        self, threads: int, context: int, kv_type: str, batch: int, *, sequences: int = 1
    ) -> Any:
        params = self.library.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = batch
        params.n_ubatch = batch
        params.n_threads = threads
        params.n_threads_batch = threads
        params.type_k = params.type_v = _KV_TYPES[kv_type]
        if not self.gpu_layers:  # a build with a GPU would still send it the long prompts
            params.offload_kqv = params.op_offload = False
        if kv_type == "f32":  # for exactness; a benchmark keeps the default
            params.flash_attn_type = _FLASH_OFF
        if sequences > 1:  # one memory for all, so that they can share tokens
            params.n_seq_max = sequences
            params.kv_unified = True
        if self.part < batch and hasattr(params, "n_outputs_max"):
            params.n_outputs_max = self.part
        opened = self.library.llama_init_from_model(self.model, params)
        if not opened:
            raise RuntimeError(f"llama.cpp cannot open a context of {context} tokens")
        return opened

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        if self.library.llama_model_meta_val_str(self.model, key.encode(), buffer, 256) < 0:
            raise RuntimeError(f"the file has no {key}")
        return buffer.value.decode()

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        for _ in range(2):
            ids = (ctypes.c_int32 * room)()
            count = self.library.llama_tokenize(
                self.vocab, data, len(data), ids, room, add_special, parse_special
            )
            if count >= 0:
                return list(ids[:count])
            room = -count
        raise RuntimeError(f"llama_tokenize answered {count}")

    def detokenize(self, ids: Sequence[int]) -> str:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        room = 16 * len(ids) + 64
        for _ in range(2):
            text = ctypes.create_string_buffer(room)
            count = self.library.llama_detokenize(
                self.vocab, tokens, len(ids), text, room, False, True
            )
            if count >= 0:
                return text.raw[:count].decode("utf-8", "replace")
            room = -count
        raise RuntimeError(f"llama_detokenize answered {count}")

    def end_tokens(self) -> frozenset[int]:
        is_end = self.library.llama_vocab_is_eog
        return frozenset(i for i in range(self.vocabulary) if is_end(self.vocab, i))

    def iter_logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        self._need(len(ids))
        self._check_ids(ids)
        self._clear()
        batch = self.library.llama_batch_init(self.part, 0, 1)
        try:
            for start in range(0, len(ids), self.part):
                piece = ids[start : start + self.part]
                batch.n_tokens = len(piece)
                for row, token in enumerate(piece):
                    batch.token[row] = token
                    batch.pos[row] = start + row
                    batch.n_seq_id[row] = 1
                    batch.seq_id[row][0] = 0
                    batch.logits[row] = 1
                self._decode(batch)
                values = self.library.llama_get_logits(self.context)
                if not values:
                    raise RuntimeError("llama_get_logits gave nothing")
                yield np.ctypeslib.as_array(values, shape=(len(piece), self.vocabulary)).copy()
        finally:
            self.library.llama_batch_free(batch)

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, *, stop: Collection[int] = ()
    ) -> list[int]:
        if not ids:
            raise UsageError("there is nothing to continue", "give at least one token")
        self._need(len(ids) + max_new_tokens)
        self._check_ids(ids)
        self._clear()
        self._feed(self._pieces(ids))
        fresh: list[int] = []
        while len(fresh) < max_new_tokens:
            token = int(self._last_logits().argmax())
            if token in stop or self.library.llama_vocab_is_eog(self.vocab, token):
                break
            fresh.append(token)
            if len(fresh) < max_new_tokens:
                self._feed(self._pieces([token]))
        return fresh

    def choice_scores(
        self, context_ids: Sequence[int], choices_ids: Sequence[Sequence[int]]
    ) -> list[Score]:
        """A token of the context belongs to every choice's sequence, so it is computed once; all
        goes into one batch where it fits (idea: llama.cpp, tools/perplexity, HellaSwag)."""
        self._need(check(context_ids, choices_ids))
        self._check_ids([*context_ids, *(i for choice in choices_ids for i in choice)])
        scores: list[Score] = []
        group: list[Sequence[int]] = []
        held = len(context_ids)
        for choice in choices_ids:
            if len(group) == self._branches or held + len(choice) - 1 > self.size:
                scores += self._score_group(context_ids, group)
                group, held = [], len(context_ids)
            group.append(choice)
            held += len(choice) - 1
        return scores + self._score_group(context_ids, group)

    def _score_group(
        self, context_ids: Sequence[int], choices_ids: Sequence[Sequence[int]]
    ) -> list[Score]:
        """At most `_branches` choices that fit the open context together."""
        if self._branched is None:
            self._branched = self._open_context(*self._how, sequences=self._branches)
        opened, everyone = self._branched, range(len(choices_ids))
        last = len(context_ids) - 1
        # (token, position, its sequences, whether its logits are wanted)
        plan: list[tuple[int, int, Sequence[int], bool]] = [
            (token, place, everyone, place == last) for place, token in enumerate(context_ids)
        ]
        for index, choice in enumerate(choices_ids):
            plan += [(t, last + 1 + i, (index,), True) for i, t in enumerate(choice[:-1])]
        self.library.llama_memory_clear(self.library.llama_get_memory(opened), True)
        batch = self.library.llama_batch_init(self.part, 0, self._branches)
        rows: list[list[np.ndarray]] = [[] for _ in everyone]
        try:
            for start in range(0, len(plan), self.part):
                piece = plan[start : start + self.part]
                batch.n_tokens = len(piece)
                for row, (token, place, sequences, wanted) in enumerate(piece):
                    batch.token[row] = token
                    batch.pos[row] = place
                    batch.n_seq_id[row] = len(sequences)
                    for at, sequence in enumerate(sequences):
                        batch.seq_id[row][at] = sequence
                    batch.logits[row] = wanted
                self._decode(batch, opened)
                for row, (_, _, sequences, wanted) in enumerate(piece):
                    if wanted:
                        made = self._row(opened, row).copy()
                        for sequence in sequences:
                            rows[sequence].append(made)
        finally:
            self.library.llama_batch_free(batch)
        pairs = zip(rows, choices_ids, strict=True)
        return [score_rows(np.stack(made), choice) for made, choice in pairs]

    def time_once(self, *, prompt: int, generate: int, depth: int = 0, seed: int = 0) -> Timing:
        self._need(depth + max(prompt, generate))
        rng = random.Random(seed)
        draw = [rng.randrange(self.vocabulary) for _ in range(depth + prompt + generate)]
        if self.library.llama_vocab_get_add_bos(self.vocab) and draw:
            draw[0] = self.library.llama_vocab_bos(self.vocab)
        before = self._pieces(draw[:depth])
        question = self._pieces(draw[depth : depth + prompt])
        singles = [self._pieces([token]) for token in draw[depth + prompt :]]
        synchronize = self.library.llama_synchronize

        prefill_s, ttft_ms, decode_s = 0.0, float("nan"), 0.0
        begin, ends = 0.0, list[float]()
        self._clear()
        self._feed(before)
        synchronize(self.context)
        if prompt:
            begin = time.perf_counter()
            self._feed(question)
            synchronize(self.context)
            prefill_s = time.perf_counter() - begin
            self._last_logits().argmax()
            ttft_ms = (time.perf_counter() - begin) * 1e3
            if generate and not self.library.llama_memory_seq_rm(self.memory, 0, depth, -1):
                self._clear()
                self._feed(before)
                synchronize(self.context)
        if generate:
            begin = time.perf_counter()
            for single in singles:
                self._feed(single)
                synchronize(self.context)
                ends.append(time.perf_counter())
            decode_s = time.perf_counter() - begin
        token_ms = each_ms(begin, ends) if ends else ()
        return Timing(prompt, generate, depth, prefill_s, ttft_ms, decode_s, token_ms)

    def peak_rss_mib(self) -> float:
        return peak_rss_mib()

    def _need(self, tokens: int) -> None:
        if tokens > self.size:
            raise UsageError(
                f"{tokens} tokens do not fit the open context of {self.size}",
                "open it with a larger context, or take fewer tokens",
            )

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocabulary), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} is outside the vocabulary of {self.vocabulary}")

    def _clear(self) -> None:
        self.library.llama_memory_clear(self.memory, True)

    def _pieces(self, ids: Sequence[int]) -> list[Any]:
        cut = [ids[i : i + self.batch] for i in range(0, len(ids), self.batch)]
        return [(ctypes.c_int32 * len(piece))(*piece) for piece in cut]

    def _feed(self, pieces: list[Any]) -> None:
        """Decode prepared pieces after what the context holds; only the last logits are made."""
        for piece in pieces:
            self._decode(self.library.llama_batch_get_one(piece, len(piece)))

    def _decode(self, batch: Any, context: Any = None) -> None:
        code = self.library.llama_decode(self.context if context is None else context, batch)
        if code != 0:
            reason = {1: "no room in the context", 2: "aborted", -1: "invalid batch"}
            raise RuntimeError(f"llama_decode answered {code} ({reason.get(code, 'fatal error')})")

    def _last_logits(self) -> np.ndarray:
        return self._row(self.context, -1)

    def _row(self, context: Any, index: int) -> np.ndarray:
        """The logits of one token of the last batch, in the runtime's own memory."""
        values = self.library.llama_get_logits_ith(context, index)
        if not values:
            raise RuntimeError("llama_get_logits_ith gave nothing")
        return np.ctypeslib.as_array(values, shape=(self.vocabulary,))


def quantize_file(
    source: str,
    destination: str,
    file_type: int,
    threads: int,
    importance: Mapping[str, np.ndarray] | None = None,
    types: Mapping[str, str] | None = None,
) -> list[str]:
    """Quantize a GGUF file; return the log's lines about tensors that fell back to another type.

    Args: `importance` tensor name -> weight of each column; `types` tensor name -> its type (such
    as "Q6_K"), where llama.cpp's own choice is not wanted.
    Starts from llama_model_quantize_default_params() (PITFALLS 10): the struct changes between
    releases. Raises RuntimeError on a non-zero code; llama.cpp itself may abort.
    """
    library = load_library()
    pieces: list[str] = []

    @library.llama_log_callback
    def keep(level: int, text: bytes, user_data: object) -> None:
        pieces.append(text.decode("utf-8", "replace"))
        sys.stderr.write(pieces[-1])

    library.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        params = library.llama_model_quantize_default_params()
        params.nthread = threads
        params.ftype = file_type
        params.max_buf_size = _QUANTIZE_BYTES
        if importance:
            params.imatrix = _importance_entries(library, importance)
        if types:
            params.tt_overrides = _type_entries(library, types)
        code = library.llama_model_quantize(source.encode(), destination.encode(), params)
    finally:
        library.llama_log_set(library.llama_log_callback(), ctypes.c_void_p(0))
        sys.stderr.flush()
    if code != 0:
        raise RuntimeError(f"llama_model_quantize answered {code}")
    return [line for line in "".join(pieces).splitlines() if "fallback" in line]


def _importance_entries(library: Any, importance: Mapping[str, np.ndarray]) -> Any:
    """An array of llama_model_imatrix_data that ends with a null name.

    Older releases take a pointer to a C++ map there, which cannot be made here.
    """
    kind = getattr(library, "llama_model_imatrix_data", None)
    if kind is None:
        raise MissingDependencyError(
            f"llama-cpp-python {library.__version__} takes no importance matrix",
            f"{PIP_LINE} --upgrade",
        )
    array = (kind * (len(importance) + 1))()
    for entry, (name, columns) in zip(array, importance.items(), strict=False):
        values = np.ascontiguousarray(columns, dtype=np.float32)
        entry.name, entry.size = name.encode(), values.size
        entry.data = np.ctypeslib.as_ctypes(values)  # ctypes keeps it alive with the array
    return array


def _type_entries(library: Any, types: Mapping[str, str]) -> Any:
    """An array of llama_model_tensor_override that ends with a null pattern."""
    from gguf import GGMLQuantizationType

    kind = getattr(library, "llama_model_tensor_override", None)
    if kind is None:
        raise MissingDependencyError(
            f"llama-cpp-python {library.__version__} takes no types of single tensors",
            f"{PIP_LINE} --upgrade",
        )
    array = (kind * (len(types) + 1))()
    for entry, (name, type_name) in zip(array, types.items(), strict=False):
        entry.pattern = f"^{re.escape(name)}$".encode()
        entry.type = int(GGMLQuantizationType[type_name])
    return array
