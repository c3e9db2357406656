"""A plain loop over llama_decode, to hold the bench's own timing against: a process of its own.

    python tests/bench/plain_loop.py FILE.gguf PROMPT GENERATE THREADS

For each line that it reads it times a prompt and then the tokens one by one, as tersely as the C
interface allows, and writes "prefill_s decode_s". It shares no line with clp_edge.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time

import llama_cpp


def main(path: str, prompt: int, generate: int, threads: int) -> None:
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    how = llama_cpp.llama_model_default_params()
    how.n_gpu_layers = 0
    if b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
        how.use_extra_bufts = False  # its kernels die there (llama.cpp PR #26954)
    model = llama_cpp.llama_model_load_from_file(path.encode(), how)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = prompt + generate + 1
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    memory = llama_cpp.llama_get_memory(context)
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    print("ready", flush=True)
    for _ in sys.stdin:
        tokens = [random.randrange(size) for _ in range(prompt + generate)]
        llama_cpp.llama_memory_clear(memory, True)
        begin = time.perf_counter()
        for start in range(0, prompt, 512):
            piece = tokens[start : min(start + 512, prompt)]
            array = (ctypes.c_int32 * len(piece))(*piece)
            assert (
                llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(piece)))
                == 0
            )
        llama_cpp.llama_synchronize(context)
        prefill = time.perf_counter() - begin
        llama_cpp.llama_memory_clear(memory, True)
        one = (ctypes.c_int32 * 1)()
        begin = time.perf_counter()
        for token in tokens[prompt:]:
            one[0] = token
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(one, 1)) == 0
            llama_cpp.llama_synchronize(context)
        print(prefill, time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
