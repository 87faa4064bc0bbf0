from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.test_trainer import fresh_model, rows
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from pigeonhole.errors import ConfigError
from pigeonhole.training import padding_free, trainer
from pigeonhole.training.batches import Packed, TokenizedRows
from pigeonhole.training.model import TextClassifier, take_apart
from pigeonhole.training.padding_free import PaddingFree, pad

TEXTS = rows(24)


def packed() -> Packed:
    return TEXTS.pack(np.arange(24))


def distilbert() -> TextClassifier:
    config = DistilBertConfig(vocab_size=40, n_layers=2, n_heads=2, dim=32, hidden_dim=64, max_position_embeddings=32)
    return take_apart(DistilBertForSequenceClassification(config))


def test_packed_windows_are_padded_to_the_longest_and_masked() -> None:
    input_ids, mask = pad(TokenizedRows([[5, 6, 7], [8]], np.zeros(2, np.int64)).pack(np.array([0, 1])))
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("make", [fresh_model, distilbert])
def test_the_answer_is_that_of_the_padded_model(make: Callable[[], TextClassifier]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    expected_logits, expected = model(*pad(packed()))
    logits, embedding = PaddingFree(model)(packed())
    torch.testing.assert_close(embedding, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits, expected_logits, atol=1e-6, rtol=1e-5)


def test_a_decoder_reads_the_last_token_of_each_text_and_no_padding() -> None:
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    model = take_apart(GPT2ForSequenceClassification(GPT2Config(**size, pad_token_id=1)).eval())
    alone = [model(torch.tensor([ids]), torch.ones(1, len(ids)))[0] for ids in TEXTS.input_ids]
    torch.testing.assert_close(PaddingFree(model)(packed())[0], torch.cat(alone), atol=1e-6, rtol=1e-5)
    with pytest.raises(ConfigError, match="GPT2ForSequenceClassification has no pad_token_id; choose an encoder"):
        take_apart(GPT2ForSequenceClassification(GPT2Config(**size)))


@pytest.mark.parametrize("plain", [True, False], ids=["written out", "module by module"])
@pytest.mark.parametrize("texts", [TEXTS, TokenizedRows([[2, 5, 9, 3], [2, 6, 8, 3]], np.array([0, 1]))], ids=["ragged", "full"])
def test_the_gradients_are_those_of_the_padded_model(texts: TokenizedRows, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding_free, "is_plain", lambda layer: plain)  # a GPU and adapters take the second way
    windows = texts.pack(np.arange(len(texts)))
    model = fresh_model().eval()
    gradients = []
    for logits, _ in (model(*pad(windows)), PaddingFree(model)(windows)):
        model.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, torch.from_numpy(texts.label_ids)))
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-4)


def test_a_text_has_the_same_logits_in_any_order_of_the_rows(tmp_path: Path) -> None:
    model = fresh_model()
    order = np.random.default_rng(0).permutation(24)
    shuffled = TokenizedRows([TEXTS.input_ids[row] for row in order], TEXTS.label_ids[order])
    np.testing.assert_allclose(trainer.predict_logits(model, shuffled), trainer.predict_logits(model, TEXTS)[order], atol=1e-6)


@pytest.mark.parametrize("plain", [True, False], ids=["written out", "module by module"])
def test_attention_has_a_dropout_of_its_own(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding_free, "is_plain", lambda layer: plain)
    model = fresh_model().train()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5 if name.endswith("attention.self.dropout") else 0.0
    forward = PaddingFree(model)
    assert not torch.equal(forward(packed())[0], forward(packed())[0])
    model.eval()
    assert torch.equal(forward(packed())[0], forward(packed())[0])


def test_logits_are_fp32_where_layers_multiply_in_bf16() -> None:
    model = fresh_model().eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits, embedding = PaddingFree(model)(packed())
    assert logits.dtype == embedding.dtype == torch.float32
    torch.testing.assert_close(logits, model.head(embedding), atol=1e-6, rtol=1e-6)


def test_dropout_is_on_while_training() -> None:
    model = fresh_model().train()
    forward = PaddingFree(model)
    assert not torch.equal(forward(packed())[0], forward(packed())[0])
