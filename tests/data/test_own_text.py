"""Text that the model writes itself: seeded, of equal length, without special tokens, cached."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.cache_utils import DynamicCache

from clp_edge.data import evaluation_text, own_text, write_own_text
from clp_edge.data.documents import documents_from_texts
from clp_edge.data.growing_cache import STEP, GrowingLayer, growing_cache
from clp_edge.data.openings import NUMBERS, PLACE, templates
from clp_edge.data.openings import openings as own_openings
from clp_edge.data.own_text import banned_ids
from clp_edge.errors import ClpEdgeError, UsageError
from tests.data.test_packing import with_rule
from tests.models.tiny_gguf import byte_level_tokenizer, tiny_llama

torch.set_num_threads(2)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def all_ids(calibration) -> torch.Tensor:
    rows = torch.cat([calibration.fit, calibration.select, calibration.report])
    return rows[rows[:, 0].argsort(stable=True)]


def test_the_seed_decides(model, tokenizer):
    sizes = {"sequences": 20, "length": 12, "batch": 8}
    first = write_own_text(model, tokenizer, seed=0, **sizes)
    assert [len(part) for part in (first.fit, first.select, first.report)] == [16, 2, 2]
    assert first.length == 12
    again = write_own_text(model, tokenizer, seed=0, **sizes)
    assert torch.equal(first.fit, again.fit)
    assert torch.equal(first.report, again.report)
    assert first.sha256 == again.sha256
    other = write_own_text(model, tokenizer, seed=1, **sizes)
    assert other.sha256 != first.sha256
    assert not torch.equal(other.fit, first.fit)


@pytest.mark.parametrize("bos", [False, True])
def test_sequences_begin_with_openings_and_go_on_by_themselves(model, tokenizer, bos):
    """Every opening in turn, of a quarter of the length at most; then the model's own words."""
    if bos:
        tokenizer = with_rule(["<|im_start|>", "$A"])
    openings = ("ab", "cdefghijklmno", "<|im_end|>", "p")
    written = write_own_text(
        model,
        tokenizer,
        sequences=6,
        length=40,
        seed=3,
        batch=4,
        temperature=1e-4,
        openings=openings,
    )
    ids = all_ids(written)[:, int(bos) :]
    begun = sorted(text[:10] for text in tokenizer.batch_decode(ids))
    for opening in ("ab", "cdefghijkl", "p"):
        assert sum(one.startswith(opening) for one in begun) == 2
    whole = all_ids(written)
    likely = model(whole).logits.masked_fill(banned_ids(tokenizer, 320), -torch.inf).argmax(dim=-1)
    forced = {"a": 2, "c": 10, "p": 1}
    for row, best in zip(whole, likely, strict=True):
        start = int(bos) + forced[tokenizer.decode(row[int(bos)])]
        assert torch.equal(best[start - 1 : -1], row[start:])


def test_without_an_opening_it_knows_the_first_token_is_any(model, tokenizer):
    sizes = {"sequences": 30, "length": 12, "seed": 0}
    unknown = write_own_text(model, tokenizer, openings=("<|im_end|>",), **sizes)
    assert torch.equal(
        all_ids(unknown), all_ids(write_own_text(model, tokenizer, openings=(), **sizes))
    )
    assert len(set(all_ids(unknown)[:, 0].tolist())) > 10


def test_our_own_openings_are_many_and_hardly_alike(tokenizer):
    lines, words = templates()
    assert len(lines) == len(set(lines)) > 300
    assert any("\n" in line for line in lines)
    places = {place for line in lines for place in PLACE.findall(line)}
    assert places - set(NUMBERS) == set(words)
    drawn = own_openings(2 * len(lines), torch.Generator().manual_seed(0))
    assert not any(PLACE.search(one) for one in drawn)
    assert len(set(drawn)) > 1.3 * len(lines)
    assert own_openings(9, torch.Generator().manual_seed(1)) == own_openings(
        9, torch.Generator().manual_seed(1)
    )


def test_cold_sampling_is_greedy_decoding_of_the_whole_sequence(model, tokenizer):
    """Through the cache or not, each token must be the model's own most likely ordinary one."""
    calibration = write_own_text(
        model, tokenizer, sequences=6, length=10, seed=3, batch=4, temperature=1e-4, openings=()
    )
    ids = all_ids(calibration)
    logits = model(ids).logits.masked_fill(banned_ids(tokenizer, 320), -torch.inf)
    assert torch.equal(logits[:, :-1].argmax(dim=-1), ids[:, 1:])


def test_sampling_follows_the_models_distribution(model, tokenizer):
    calibration = write_own_text(
        model, tokenizer, sequences=600, length=4, seed=0, batch=200, openings=()
    )
    ids = all_ids(calibration)
    logits = model(ids).logits[:, :-1].masked_fill(banned_ids(tokenizer, 320), -torch.inf)
    probabilities = torch.softmax(logits, dim=-1)
    # E[p(x)] over draws x equals the sum of p squared
    drawn = probabilities.gather(2, ids[:, 1:, None]).mean()
    expected = probabilities.square().sum(dim=-1).mean()
    assert drawn == pytest.approx(float(expected), rel=0.08)


def test_no_special_token_and_the_bos_by_rule(model, tokenizer):
    plain = all_ids(write_own_text(model, tokenizer, sequences=30, length=12, seed=0))
    assert int(plain.min()) > 2  # 0, 1 and 2 are the special ones
    ruled = with_rule(["<|im_start|>", "$A"])
    calibration = write_own_text(model, ruled, sequences=30, length=12, seed=0, openings=())
    ids = all_ids(calibration)
    assert ids.shape == (30, 12)
    assert (ids[:, 0] == 1).all()
    assert int(ids[:, 1:].min()) > 2
    assert "<|im_start|>" not in calibration.texts[0]
    assert calibration.fit_texts[0] == ruled.decode(calibration.fit[0, 1:].tolist())
    assert len(set(ids[:, 1].tolist())) > 10  # the first tokens are random


def test_unused_and_padded_ids_are_banned(tokenizer):
    class Padded:
        def __init__(self):
            self.added_tokens_decoder = {}
            self.all_special_ids = [0]

        def __len__(self):
            return 6

        def convert_ids_to_tokens(self, ids):
            return ["</s>", "word", "<unused7>", "[PAD151]", "<|reserved_special_token_0|>", "[x"]

    assert banned_ids(Padded(), 8).tolist() == [True, False, True, True, True, False, True, True]
    assert banned_ids(tokenizer, 320).nonzero().flatten().tolist() == [0, 1, 2]


def test_the_cache_is_used_and_keyed(model, tokenizer, tmp_path):
    calls = []
    arguments = {
        "sequences": 6,
        "length": 8,
        "seed": 0,
        "cache_dir": tmp_path / "cache",
        "progress": lambda done, total, note="": calls.append((done, total)),
    }
    first = write_own_text(model, tokenizer, fingerprint="model-a", **arguments)
    assert calls[-1] == (48, 48)
    assert calls == sorted(calls)
    calls.clear()
    again = write_own_text(model, tokenizer, fingerprint="model-a", **arguments)
    assert calls == []
    assert torch.equal(first.fit, again.fit)
    assert first.texts == again.texts
    write_own_text(model, tokenizer, fingerprint="model-b", **arguments)
    assert calls
    (cached,) = [
        p for p in (tmp_path / "cache").iterdir() if p.stat().st_mtime_ns == _oldest(tmp_path)
    ]
    cached.write_bytes(b"damaged")
    calls.clear()
    repaired = write_own_text(model, tokenizer, fingerprint="model-a", **arguments)
    assert calls
    assert torch.equal(first.fit, repaired.fit)
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_other_words_for_a_place_are_another_text(model, tokenizer, tmp_path, monkeypatch):
    sizes = {"sequences": 6, "length": 8, "seed": 0}
    kept = {"cache_dir": tmp_path / "cache", "fingerprint": "model-a"}
    write_own_text(model, tokenizer, **sizes, **kept)
    lines, words = templates()
    monkeypatch.setattr(own_text, "templates", lambda: (lines, {**words, "city": ("Elsewhere",)}))
    write_own_text(model, tokenizer, **sizes, **kept)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_is_computed_in_is_part_of_the_key(model, tokenizer, tmp_path):
    """Text of one precision is never taken for that of another: their roundings differ."""
    arguments = {
        "sequences": 6,
        "length": 8,
        "seed": 0,
        "cache_dir": tmp_path / "cache",
        "fingerprint": "model-a",
    }

    def kept() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    exact = write_own_text(model, tokenizer, **arguments)
    assert kept() == 1
    for _ in range(2):  # the second time from the cache
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fast = write_own_text(model, tokenizer, **arguments)
        assert kept() == 2
    half = copy.deepcopy(model).to(torch.bfloat16)
    write_own_text(half, tokenizer, **arguments)
    assert kept() == 3
    assert torch.equal(write_own_text(model, tokenizer, **arguments).fit, exact.fit)
    assert kept() == 3
    # the first tokens are drawn, not computed
    assert torch.equal(fast.fit[:, 0], exact.fit[:, 0])


def _oldest(tmp_path) -> int:
    return min(p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir())


def test_ids_can_be_trained_on(model, tokenizer):
    ids = write_own_text(model, tokenizer, sequences=3, length=6, seed=0).fit
    embedding = torch.nn.Embedding(320, 4)
    embedding(ids).sum().backward()  # an inference-mode tensor would raise here
    assert float(embedding.weight.grad.sum()) == ids.numel() * 4


def test_pitfall_8_own_text_is_guarded_too(model, tokenizer):
    calibration = write_own_text(model, tokenizer, sequences=10, length=160, seed=0)
    text = "\n\n".join(calibration.fit_texts[:4])
    with pytest.raises(ClpEdgeError, match="written by the model itself"):
        evaluation_text(
            documents_from_texts([text], "stolen"), tokenizer, length=128, against=calibration
        )


def test_bad_sizes_and_broken_models(tokenizer):
    model = tiny_llama()
    with pytest.raises(UsageError, match="exceed the model's context of 512"):
        write_own_text(model, tokenizer, sequences=4, length=513, seed=0)
    with pytest.raises(UsageError, match="cannot write 2 sequences"):
        write_own_text(model, tokenizer, sequences=2, length=8, seed=0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ClpEdgeError, match="logits are not finite"):
        write_own_text(model, tokenizer, sequences=4, length=8, seed=0)


def test_the_growing_cache_holds_what_transformers_own_cache_holds(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 320, (2, STEP + 9), generator=generator)
    grown, plain = growing_cache(model.config), DynamicCache(config=model.config)
    assert any(type(layer) is GrowingLayer for layer in grown.layers)
    # one token, then across the first room's end, in unequal pieces
    with torch.no_grad():
        for part in ids.split([1, STEP - 2, 3, 7], dim=1):
            ours = model(part, past_key_values=grown, use_cache=True).logits
            theirs = model(part, past_key_values=plain, use_cache=True).logits
            torch.testing.assert_close(ours, theirs)
    assert grown.get_seq_length() == STEP + 9
    for ours, theirs in zip(grown.layers, plain.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
