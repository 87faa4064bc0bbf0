from pathlib import Path

import msgspec
import pytest
import yaml

from pigeonhole.configuration import compose, groups
from pigeonhole.errors import ConfigError, UserError
from pigeonhole.training.config import TrainConfig
from pigeonhole.training.space import Range, Space, check_training, read_space, to_experiment, to_vertex, to_wandb, written


def space_of(folder: Path, content: str) -> Space:
    (folder / "mine.yaml").write_text(f"metric: validation_macro_f1\ntrials: 3\nkeys:\n  {content}\n")
    return read_space(str(folder / "mine.yaml"))


@pytest.mark.parametrize("name", groups()["sweep"])
@pytest.mark.parametrize("end", [0, 1])
def test_both_ends_of_every_sweep_compose_and_differ_from_each_other(name: str, end: int) -> None:
    space = read_space(name)
    compose(TrainConfig, "train", [f"{key}={written(space.ends(key)[end])}" for key in space.keys])
    assert all(low != high for low, high in map(space.ends, space.keys))


def test_numbers_are_read_as_train_reads_them(tmp_path: Path) -> None:
    rates = "trainer.learning_rate: [1e-4, 2e-4]\n  trainer.weight_decay: {low: 1e-3, high: 1e-1, scale: log}"
    space = space_of(tmp_path, f"{rates}\n  tfidf.inverse_regularisation: [1.5e1, 20]")
    assert space.keys == {
        "trainer.learning_rate": [1e-4, 2e-4],
        "trainer.weight_decay": Range(1e-3, 1e-1, "log"),
        "tfidf.inverse_regularisation": [15, 20],
    }
    (tmp_path / "mine.yaml").rename(tmp_path / "mine.yml")
    assert read_space(str(tmp_path / "mine.yml")) == space


def test_a_metric_that_is_none_is_told_which_there_are(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("metric: accuracy\ntrials: 2\nkeys:\n  trainer.epochs: [1, 2]\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*metric.*allowed: validation_macro_f1"):
        read_space(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "trainer.learning_rat: [0.1, 0.2]",
            "trainer.learning_rat: no key that a sweep can vary; did you mean trainer.learning_rate",
        ),
        ("data.val: [0.1, 0.2]", "data.val: no key that a sweep can vary"),
        ("export.int8: [true, false]", "export.int8: no key that a sweep can vary"),
        ("serve.threshold: [0.1, 0.9]", "serve.threshold: no key that a sweep can vary"),
        ("decision.kept: [0.9, 0.98]", "decision.kept: no key that a sweep can vary"),
        *((f"{key}: [a, b]", f"{key}: no key that a sweep can vary") for key in ("name", "out", "registry")),
        ("resume: [auto, never]", "resume: no key that a sweep can vary"),
        ("reference_path: [a.csv, b.csv]", "reference_path: no key that a sweep can vary"),
        ("tracking.backend: [wandb, none]", "tracking.backend: no key that a sweep can vary"),
        ("trainer.learning_rate: {low: 0.1, high: 2}", r"trainer.learning_rate: 2.0 is not allowed; expected float > 0 and <= 1"),
        ("trainer.learning_rate: {low: 0.2, high: 0.1}", "expected low < high"),
        ("trainer.learning_rate: {low: 0.2, high: 0.2}", "expected low < high"),
        ("seed: {low: 4, high: 5}\npruning: false", "trials=3: one for each seed, expected 2 to 2"),
        ("trainer.weight_decay: {low: 0, high: 0.1, scale: log}", "low > 0 on a log scale"),
        ("trainer.batch_size: {low: 8, high: 64, scale: log}", "list its values"),
        ("trainer.batch_size: [8, 8.5]", "8.5 is not allowed"),
        ("trainer.batch_size: [8, many]", "trainer.batch_size: many is not allowed; expected int >= 1"),
        ("trainer.epochs: [2.0, 4.0]", "trainer.epochs: 2.0 is not allowed; expected int"),
        ("trainer.epochs: {low: 1, high: 2.5}", "trainer.epochs: 2.5 is not allowed; expected int"),
        ("trainer.epochs: {low: 1, high: .inf}", "trainer.epochs: inf is not allowed; expected int"),
        ("trainer.epochs: [true, false]", "trainer.epochs: True is not allowed; expected int"),
        ("trainer.learning_rate: [0.1, fast]", "trainer.learning_rate: fast is not allowed; expected float"),
        ("trainer.refit_head: [1, 2]", "trainer.refit_head: 1 is not allowed; expected bool"),
        ("model.layers: [2, 2.5]", "model.layers: 2.5 is not allowed; expected int"),
        ("model.windowing: [1, mean]", "model.windowing: 1 is not allowed; expected str one of truncate, mean, max"),
        ("trainer.refit_head: {low: 0, high: 1}", "takes bool, not a range"),
        ("trainer.epochs: [1]", "length >= 2"),
        ("trainer.epochs: {lo: 1, high: 2}", "mine.yaml: .*lo"),
        ("trainer.epochs: [2, 2]", "mine.yaml: trainer.epochs: a value stands twice"),
        ("seed: [0, 1, 2]\n  trainer.epochs: [1, 2]", "seed: beside trainer.epochs a lucky seed would pass for a better recipe"),
        ("seed: [0, 1, 2]", "mine.yaml: pruning: a mean needs every seed to its end; write pruning: false"),
        ("seed: [0, 1]\npruning: false", "mine.yaml: trials=3: one for each seed, expected 2 to 2"),
        ("trainer.epochs: [1, 2]\n  trainer.epochs: [3, 4]", "mine.yaml: found duplicate key trainer.epochs"),
        ("trainer.epochs: [1, 2026-13-01]", "mine.yaml: a value cannot be read: month must be in 1..12"),
        ("trainer.epochs: " + "[" * 5000, "mine.yaml: is nested too deeply"),
    ],
)
def test_a_mistake_in_a_definition_names_file_key_and_what_is_allowed(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(tmp_path, content)


def test_a_sweep_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="sweep=learning_rate: there is no such sweep; did you mean learning_rates"):
        read_space("learning_rate")


def test_a_name_that_no_file_can_have_is_a_mistake_of_the_users() -> None:
    with pytest.raises(UserError, match="s" * 300):
        read_space("s" * 300)


@pytest.mark.parametrize("lengths", ["[64, 128]", "[128, 64]"])
def test_keys_of_train_that_go_with_one_end_alone_are_refused(tmp_path: Path, lengths: str) -> None:
    space = space_of(tmp_path, f"model.max_length: {lengths}")
    with pytest.raises(ConfigError, match=r"model.window_overlap=64: at most half of model.max_length=64"):
        check_training(space, ["model.windowing=mean", "model.window_overlap=64"])


def test_one_definition_gives_wandb_and_vertex_the_same_space() -> None:
    space = Space(
        metric="validation_macro_f1",
        trials=5,
        keys={
            "trainer.learning_rate": Range(1e-5, 1e-3, "log"),
            "trainer.epochs": Range(1, 4),
            "trainer.batch_size": [32, 16],
            "trainer.refit_head": [False, True],
        },
    )
    wandb = yaml.safe_load(to_wandb(space, ["experiment=fast"]))
    assert wandb["run_cap"] == 5
    assert wandb["early_terminate"]["type"] == "hyperband"
    assert "early_terminate" not in yaml.safe_load(to_wandb(msgspec.structs.replace(space, pruning=False), []))
    assert to_vertex(space)["metrics"] == [{"metricId": "validation_macro_f1", "goal": "MAXIMIZE"}]
    assert wandb["metric"] == {"name": "validation_macro_f1", "goal": "maximize"}
    assert wandb["command"] == ["${env}", "uv", "run", "train", "experiment=fast", "tracking=wandb", "${args_no_hyphens}"]
    assert wandb["parameters"] == {
        "trainer.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
        "trainer.epochs": {"distribution": "int_uniform", "min": 1, "max": 4},
        "trainer.batch_size": {"values": [32, 16]},
        "trainer.refit_head": {"values": [False, True]},
    }
    assert to_vertex(space)["parameters"] == [
        {
            "parameterId": "trainer.learning_rate",
            "doubleValueSpec": {"minValue": 1e-5, "maxValue": 1e-3},
            "scaleType": "UNIT_LOG_SCALE",
        },
        {"parameterId": "trainer.epochs", "integerValueSpec": {"minValue": 1, "maxValue": 4}, "scaleType": "UNIT_LINEAR_SCALE"},
        {"parameterId": "trainer.batch_size", "discreteValueSpec": {"values": [16, 32]}},
        {"parameterId": "trainer.refit_head", "categoricalValueSpec": {"values": ["false", "true"]}},
    ]


def test_an_experiment_file_composes_to_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = to_experiment({"seed": 3, "trainer.learning_rate": 5e-05, "trainer.refit_head": True}, "uv run train", "Found.")
    (tmp_path / "experiment" / "best.yaml").write_text(text)
    config = compose(TrainConfig, "train", ["--config-dir", str(tmp_path), "experiment=best"])
    assert (config.seed, config.trainer.learning_rate, config.trainer.refit_head) == (3, 5e-05, True)


@pytest.mark.parametrize(("values", "seeds"), [("[7, 3, 5, 9]", [7, 3, 5]), ("{low: 4, high: 6}", [4, 5, 6])])
def test_a_sweep_of_seeds_gives_each_trial_the_next_one_and_wandb_and_vertex_a_list(
    tmp_path: Path, values: str, seeds: list[int]
) -> None:
    space = space_of(tmp_path, f"seed: {values}\npruning: false")
    assert [space.seed(trial) for trial in range(3)] == seeds
    wandb = yaml.safe_load(to_wandb(space, []))
    assert (wandb["method"], wandb["parameters"]) == ("grid", {"seed": {"values": seeds}})
    study = to_vertex(space)
    assert study["algorithm"] == "GRID_SEARCH"
    assert study["parameters"] == [{"parameterId": "seed", "discreteValueSpec": {"values": sorted(seeds)}}]


def test_a_number_of_trials_of_ones_own_stands_in_place_of_the_files(tmp_path: Path) -> None:
    assert read_space("seeds").trials == 5
    assert read_space("seeds", 12).trials == 12
