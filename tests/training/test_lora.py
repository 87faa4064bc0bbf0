from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.test_trainer import RECIPE, fresh_model, rows
from transformers import (
    AutoModelForSequenceClassification,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
)

from pigeonhole.errors import ConfigError
from pigeonhole.training import trainer
from pigeonhole.training.lora import add_adapters, merge_adapters
from pigeonhole.training.model import TextClassifier, take_apart


def adapted(folder: Path) -> TextClassifier:
    model = fresh_model()
    add_adapters(model, rank=4, alpha=8, dropout=0.0)
    recipe = trainer.Recipe(**{**RECIPE.__dict__, "epochs": 2})
    trainer.train(model, rows(48), rows(24, seed=1), recipe, folder, "this run", lambda history: None)
    return model


def test_adapters_and_head_alone_learn(tmp_path: Path) -> None:
    model = fresh_model()
    before = {name: value.clone() for name, value in model.body.named_parameters()}
    model = adapted(tmp_path)
    after = {name.replace("base_layer.", ""): value for name, value in model.body.named_parameters() if "lora_" not in name}
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    learned = [value for name, value in model.body.named_parameters() if "lora_B" in name]
    assert len(learned) == 9  # query, key and value of three layers
    assert all(value.abs().sum() > 0 for value in learned)


def test_rank_strength_and_dropout_are_those_that_are_asked_for() -> None:
    model = fresh_model()
    add_adapters(model, rank=4, alpha=12, dropout=0.3)
    layers: list[Any] = [module for module in model.body.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 9
    for layer in layers:
        assert layer.scaling == {"default": 12 / 4}
        assert layer.lora_dropout["default"].p == 0.3
        assert layer.lora_A["default"].out_features == 4


def test_merged_the_encoder_is_an_ordinary_one_and_gives_the_same_answers(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    with_adapters = trainer.predict_logits(model, rows(24, seed=1))
    merge_adapters(model)
    assert model.state_dict().keys() == fresh_model().state_dict().keys()
    assert trainer.predict_logits(model, rows(24, seed=1)) == pytest.approx(with_adapters, abs=1e-5)
    plain = fresh_model().state_dict()
    moved = {name for name, value in model.body.state_dict().items() if not torch.equal(value, plain[f"body.{name}"])}
    assert moved == {
        f"bert.encoder.layer.{layer}.attention.self.{part}.weight" for layer in range(3) for part in ("query", "key", "value")
    }


SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RobertaConfig(vocab_size=60, **SIZES), {"query", "key", "value"}),
        (DistilBertConfig(vocab_size=60, n_layers=1, n_heads=2, dim=32, hidden_dim=48), {"q_lin", "k_lin", "v_lin"}),
        (ModernBertConfig(vocab_size=60, pad_token_id=0, **SIZES), {"Wqkv"}),
        (DebertaConfig(vocab_size=60, **SIZES), {"in_proj"}),
        (DebertaV2Config(vocab_size=60, **SIZES), {"query_proj", "key_proj", "value_proj"}),
        (MPNetConfig(vocab_size=60, **SIZES), {"q", "k", "v"}),
    ],
)
def test_the_attention_of_each_family_gets_adapters(config: PretrainedConfig, expected: set[str]) -> None:
    model = take_apart(AutoModelForSequenceClassification.from_config(config))
    add_adapters(model, rank=2, alpha=2, dropout=0.0)
    assert {name.rpartition(".")[2] for name, module in model.body.named_modules() if hasattr(module, "lora_A")} == expected


def test_a_body_without_known_attention_is_refused() -> None:
    model = fresh_model()
    for layer in model.body.bert.encoder.layer:  # type: ignore[union-attr]
        layer.attention = torch.nn.Identity()
    with pytest.raises(
        ConfigError,
        match=r"trainer.lora_rank=4: .* has none of the linear layers that get adapters, query, .*; it has .*dense.*; leave",
    ):
        add_adapters(model, rank=4, alpha=8, dropout=0.0)
