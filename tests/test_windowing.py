"""Texts longer than max_length, through a sealed bundle whose every word's weight is known (max_length is 32)."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tests.keyword_bundle import keyword_bundle

from pigeonhole.bundle import MANIFEST, Manifest, Precision, Windowing, WindowRule, open_bundle, seal
from pigeonhole.classifier import Classifier, aggregate
from pigeonhole.errors import BundleError
from pigeonhole.training.batches import merge_windows

FILLER = "please"


def door(folder: Path, windowing: Windowing) -> Classifier:
    return Classifier.open(keyword_bundle(folder / f"{windowing.rule}{windowing.most}", "v1", windowing=windowing))


def behind(tokens: int, word: str) -> str:
    """`word` is token number `tokens`."""
    return " ".join([FILLER] * (tokens - 1) + [word])


@pytest.mark.parametrize("rule", ["mean", "max"])
@pytest.mark.parametrize(("word", "label"), [("invoice", "billing"), ("parcel", "delivery")])
def test_a_keyword_at_token_900_changes_the_answer(tmp_path: Path, rule: WindowRule, word: str, label: str) -> None:
    windowed, cut = door(tmp_path, Windowing(rule, overlap=8, most=64)), door(tmp_path, Windowing())
    assert windowed.predict([behind(900, word)])[0].label == label
    assert not windowed.predict([behind(900, word)])[0].truncated
    plain, keyword = cut.predict([behind(900, FILLER), behind(900, word)])
    assert np.array_equal(plain.logits, keyword.logits)
    assert keyword.truncated


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_short_texts_get_the_same_bits_with_windows_and_without(tiny_bundle: Path, precision: Precision) -> None:
    texts = ["where is my parcel", "no", "somebody else has got my invoice"]
    before = Classifier.load(open_bundle(str(tiny_bundle)), precision).predict(texts)
    manifest = msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest)
    seal(tiny_bundle, msgspec.structs.replace(manifest, windowing=Windowing("mean", 8, 10)))
    windowed = Classifier.load(open_bundle(str(tiny_bundle)), precision)
    after = windowed.predict([*texts, "my parcel is late and nobody answers " * 30])
    for one, other in zip(before, after[:-1], strict=True):
        assert np.array_equal(one.logits, other.logits)
        assert np.array_equal(one.embedding, other.embedding)
        assert one.score == other.score
    with pytest.raises(BundleError, match="answers golden probe"):  # the long ones were sealed without windows
        Classifier.open(open_bundle(str(tiny_bundle)), precision)


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_a_long_text_gets_the_same_answer_alone_and_in_any_company(tiny_bundle: Path, rule: WindowRule) -> None:
    manifest = msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest)
    seal(tiny_bundle, msgspec.structs.replace(manifest, windowing=Windowing(rule, 8, 100)))
    classifier = Classifier.load(open_bundle(str(tiny_bundle)))
    texts = [f"{'my parcel is late and nobody answers ' * n} invoice number {n}" for n in (1, 3, 9, 40)]
    alone = [classifier.predict([text])[0] for text in texts]
    for together in (classifier.predict(texts), classifier.predict([*texts, *texts, "no"])):
        for found, own in zip(together, alone, strict=False):
            assert np.array_equal(found.logits, own.logits)
            assert np.array_equal(found.embedding, own.embedding)


def test_what_lies_behind_the_last_window_is_cut_and_the_answer_says_so(tmp_path: Path) -> None:
    classifier = door(tmp_path, Windowing("max", overlap=8, most=3))
    fits, too_long = classifier.predict([behind(80, "invoice"), behind(81, "invoice")])  # 32 + 24 + 24 tokens are read
    assert (fits.truncated, fits.n_tokens, fits.label) == (False, 80, "billing")
    assert (too_long.truncated, too_long.n_tokens) == (True, 80)
    assert too_long.logits.max() == 0


def test_a_token_that_two_windows_read_is_counted_once(tmp_path: Path) -> None:
    found = door(tmp_path, Windowing("mean", overlap=16, most=64)).predict([" ".join(["invoice", "zebra"] * 50)])[0]
    assert (found.n_tokens, found.unknown_tokens) == (100, 50)


def test_the_windows_logits_are_averaged_or_the_largest_is_taken(tmp_path: Path) -> None:
    text = " ".join(["invoice", *[FILLER] * 31, "parcel", "parcel"])  # two windows of 32 and 2 tokens
    mean = door(tmp_path, Windowing("mean", most=9)).predict([text])[0]
    largest = door(tmp_path, Windowing("max", most=9)).predict([text])[0]
    assert mean.logits.tolist() == [0, 1.5, 3]
    assert largest.logits.tolist() == [0, 3, 6]


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_training_merges_windows_as_the_servers_door_does(rule: WindowRule) -> None:
    windows = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    counts = [1, 4, 2]
    tensor = torch.from_numpy(windows).requires_grad_()
    merged = merge_windows(tensor, counts, rule)
    assert np.allclose(merged.detach().numpy(), np.stack(aggregate(list(windows), counts, rule)), atol=1e-6)
    torch.autograd.backward(merged.sum())
    assert tensor.grad is not None
    assert tensor.grad.sum() == pytest.approx(12)


def test_windows_that_overlap_by_more_than_half_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="windowing overlaps by 17 of 32 tokens, at most half"):
        keyword_bundle(tmp_path / "bundle", "v1", windowing=Windowing("mean", 17, 9))


def test_windows_that_leave_no_room_for_a_new_token_are_refused(tiny_bundle: Path) -> None:
    """Of four tokens two are special, and two are the last window's."""
    manifest = msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest)
    seal(tiny_bundle, msgspec.structs.replace(manifest, max_length=4, windowing=Windowing("mean", 2, 10)))
    with pytest.raises(BundleError, match=r"windows|stride"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_a_manifest_from_before_windows_is_read_as_it_was_meant() -> None:
    assert msgspec.json.decode(b'{"rule": "truncate"}', type=Windowing) == Windowing("truncate", 0, 1)
