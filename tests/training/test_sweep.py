import json
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import optuna
import pytest
from filelock import FileLock
from tests.conftest import train_arguments

from pigeonhole.configuration import compose
from pigeonhole.errors import ConfigError, DivergedError, OutOfMemoryError, RunError, StoppedError
from pigeonhole.training import study, study_plots, sweep, train
from pigeonhole.training.config import TrainConfig
from pigeonhole.training.corridor import validate
from pigeonhole.training.space import Range, Space, read_space

TRIALS = 3
OPTIONS = ("out=", "registry=", "tracking=", "trainer.learning_rate=", "trainer.epochs=")
SPACE = Space(
    metric="validation_macro_f1", trials=TRIALS, keys={"trainer.learning_rate": Range(1e-4, 1e-2, "log")}, pruning=False
)


def of(trials: int) -> Space:
    return msgspec.structs.replace(SPACE, trials=trials)


def arguments(data: Path) -> list[str]:
    """Those of the tiny model that a sweep does not set itself, and an epoch."""
    return [argument for argument in train_arguments(Path(), data) if not argument.startswith(OPTIONS)] + ["trainer.epochs=1"]


def definition(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "rates.yaml"
    path.write_text(
        "metric: validation_macro_f1\ntrials: 3\npruning: false\n"
        "keys:\n  trainer.learning_rate: {low: 1.0e-4, high: 1.0e-2, scale: log}\n  trainer.refit_head: [false, true]\n"
    )
    return f"sweep={path}"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sweep")
    found = sweep.run([definition(folder), f"folder={folder / 'study'}", *arguments(tiny_data)])
    assert found is not None
    return found


def test_a_sweep_tells_its_trials_and_its_best_one(swept: dict[str, Any]) -> None:
    assert swept["trials"]["complete"] == TRIALS
    assert json.loads(json.dumps(swept)) == swept


def test_the_metric_of_each_trial_is_the_one_that_the_run_logged(swept: dict[str, Any]) -> None:
    storage = f"sqlite:///{swept['folder']}/{study.STUDY}"
    for trial in optuna.load_study(study_name="sweep", storage=storage).trials:
        logged = (Path(swept["folder"]) / f"trial-{trial.number:03}" / "tracking.jsonl").read_text().splitlines()
        values = [json.loads(line)["validation_macro_f1"] for line in logged]
        if not trial.params["trainer.refit_head"]:
            assert trial.value == max(values)
        assert list(trial.intermediate_values.values()) == values
    assert swept["best"]["validation_macro_f1"] == max(
        trial.value for trial in optuna.load_study(study_name="sweep", storage=storage).trials if trial.value is not None
    )


def test_a_trial_makes_no_bundle_and_keeps_no_checkpoint(swept: dict[str, Any]) -> None:
    for trial in range(TRIALS):
        left = {path.name for path in (Path(swept["folder"]) / f"trial-{trial:03}").iterdir()}
        left.discard(".lock")  # an older filelock takes it away
        assert left == {"fingerprint", "config.yaml", "provenance.json", "history.jsonl", "tracking.jsonl"}


def test_the_best_trial_is_an_experiment_file_that_composes(swept: dict[str, Any], tiny_data: Path) -> None:
    config = compose(TrainConfig, "train", ["--config-dir", swept["folder"], "experiment=best"])
    assert config.trainer.learning_rate == swept["best"]["keys"]["trainer.learning_rate"]
    assert config.trainer.refit_head == swept["best"]["keys"]["trainer.refit_head"]
    assert (config.model.pretrained, config.data.path, config.trainer.epochs) == ("scratch", str(tiny_data), 1)
    assert config.out is None


def test_the_results_are_drawn_and_told_to_wandb_and_vertex(swept: dict[str, Any]) -> None:
    assert [Path(plot).stem for plot in swept["plots"]] == ["parallel_coordinates", "importance"]
    assert all(Path(plot).read_bytes().startswith(b"\x89PNG") for plot in swept["plots"])
    assert "validation_macro_f1" in Path(swept["wandb"]).read_text()
    assert json.loads(Path(swept["vertex"]).read_text())["metrics"][0]["metricId"] == "validation_macro_f1"


def test_a_finished_sweep_given_again_trains_nothing_and_is_no_other_one(
    swept: dict[str, Any], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "validate", lambda *_: pytest.fail("it trained"))
    folder = Path(swept["folder"]).parent
    asked = [definition(folder), f"folder={swept['folder']}", *arguments(tiny_data)]
    assert sweep.run(asked) == swept
    with pytest.raises(ConfigError, match="holds the study of another sweep"):
        sweep.run([*asked, "seed=1"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.learning_rate=0.1", "trainer.learning_rate=0.1: the sweep itself says so"),
        ("out=here", "out=here: the sweep itself says so"),
        ("tracking=wandb", "tracking=wandb: the sweep itself says so"),
        ("trainer.epoch=1", "did you mean trainer.epochs"),
        ("trials=0", "trials=0: expected"),
        ("sweep=rates", "sweep=rates: there is no such sweep"),
        ("split=test", "split=test: a search would choose by the rows that measure its choice"),
        ("sweep=seeds seed=3", "seed=3: the sweep itself says so"),
        ("sweep=seeds trials=1", "seeds.yaml: trials=1: one for each seed, expected 2 to 10000"),
    ],
)
def test_a_mistake_is_told_before_any_trial(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep.run(argument.split())


def points(folder: Path, stops: bool) -> list[float]:
    """What seven trials try, each measured by a parabola; `stops`: the study is opened anew for every trial."""
    folder.mkdir()
    found = study._open(SPACE, [], folder)
    tried = []
    for _ in range(7):
        found = study._open(SPACE, [], folder) if stops else found
        with study._take(found, folder, 7, seed=7) as trial:
            assert trial is not None
            value = study._value(trial, SPACE, "trainer.learning_rate")
            found.tell(trial, -((float(value) - 0.003) ** 2))
            tried.append(float(value))
    return tried


def test_a_study_that_was_stopped_tries_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    undisturbed = points(tmp_path / "once", stops=False)
    assert points(tmp_path / "often", stops=True) == undisturbed
    assert len(set(undisturbed)) == 7


def test_the_sampler_goes_by_its_seed_and_learns_from_five_trials_on(tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 1):
        found = study._open(SPACE, [], tmp_path / str(seed))
        for value in (0.1, 0.2, 0.3, 0.4):
            with study._take(found, tmp_path / str(seed), 9, seed) as trial:
                assert trial is not None
                drawn.append(study._value(trial, SPACE, "trainer.learning_rate"))
                found.tell(trial, value)
        assert (found.best_value, found.direction) == (0.4, optuna.study.StudyDirection.MAXIMIZE)
        assert found.sampler.__dict__["_n_startup_trials"] == 5
    assert len(set(drawn)) == len(drawn)


def test_only_a_study_that_prunes_has_a_pruner_and_it_waits_for_four_trials(tmp_path: Path) -> None:
    assert isinstance(study._open(SPACE, [], tmp_path / "not").pruner, optuna.pruners.NopPruner)
    pruner = study._open(msgspec.structs.replace(SPACE, pruning=True), [], tmp_path / "prunes").pruner
    assert isinstance(pruner, optuna.pruners.MedianPruner)
    assert pruner.__dict__["_n_startup_trials"] == 4


@pytest.mark.parametrize(("training", "split"), [(["seed=1"], "validation"), ([], "test")])
def test_a_folder_is_of_one_study_whatever_the_number_of_its_trials(tmp_path: Path, training: list[str], split: str) -> None:
    study._open(SPACE, [], tmp_path)
    study._open(of(9), [], tmp_path)
    with pytest.raises(ConfigError, match="holds the study of another sweep, or of other keys of train"):
        study._open(SPACE, training, tmp_path, split)


def test_a_trial_is_its_workers_own_until_that_lets_go_of_it(tmp_path: Path) -> None:
    found = study._open(SPACE, [], tmp_path)
    with study._take(found, tmp_path, 2, seed=0) as first, study._take(found, tmp_path, 2, seed=0) as second:
        assert first is not None
        assert second is not None
        assert (first.number, second.number) == (0, 1)
        with study._take(found, tmp_path, 2, seed=0) as third:
            assert third is None
    with study._take(found, tmp_path, 2, seed=0) as left:
        assert left is not None
        assert left.number == 0


def test_a_trial_that_was_left_before_it_drew_draws_what_it_would_have(tmp_path: Path) -> None:
    drawn = []
    for name in ("undisturbed", "left"):
        folder = tmp_path / name
        if name == "left":
            with study._take(study._open(SPACE, [], folder), folder, 1, seed=7):
                pass
        found = study._open(SPACE, [], folder)
        with study._take(found, folder, 1, seed=7) as trial:
            assert trial is not None
            drawn.append(study._value(trial, SPACE, "trainer.learning_rate"))
    assert drawn[0] == drawn[1]


def test_workers_have_a_trial_each_and_the_trial_of_a_killed_one_is_gone_on_with(tmp_path: Path, tiny_data: Path) -> None:
    training = [*arguments(tiny_data)[:-1], "trainer.epochs=1000", "trainer.patience=1000"]
    code = "import sys; from pigeonhole.training import sweep; sweep.run(sys.argv[1:])"
    asked = [definition(tmp_path), f"folder={tmp_path / 'study'}", *training]
    worker = subprocess.Popen([sys.executable, "-c", code, *asked], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and not (tmp_path / "study/trial-000/history.jsonl").exists():
            assert worker.poll() is None
            time.sleep(0.05)
        space = read_space(str(tmp_path / "rates.yaml"))
        ours = study._open(space, training, tmp_path / "study")
        with study._take(ours, tmp_path / "study", 3, seed=0) as trial:
            assert trial is not None
            assert trial.number == 1
            ours.tell(trial, state=optuna.trial.TrialState.FAIL)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    with study._take(ours, tmp_path / "study", 3, seed=0) as left:
        assert left is not None
        assert left.number == 0
        assert set(left.params) == {"trainer.learning_rate", "trainer.refit_head"}


def test_a_trial_that_ends_while_another_worker_looks_for_one_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, lock = study._open(SPACE, [], tmp_path), study._lock
    ours.tell(ours.ask(), 0.5)
    other = ours.ask()

    def lock_when_its_worker_has_ended(folder: Path, number: int) -> FileLock:
        if number == other.number:
            ours.tell(other, 0.5)
        return lock(folder, number)

    monkeypatch.setattr(study, "_lock", lock_when_its_worker_has_ended)
    with study._take(ours, tmp_path, 3, seed=0) as trial:
        assert trial is not None
        assert trial.number == 2


def test_a_study_that_cannot_be_read_or_written_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_the_table(*_: object) -> float:
        with sqlite3.connect(tmp_path / study.STUDY) as connection:
            connection.execute("DROP TABLE trial_values")
        connection.close()
        return 0.5

    monkeypatch.setattr(study, "validate", lose_the_table)
    with pytest.raises(RunError, match=r"study\.sqlite: no such table: trial_values; mend that and give the same command again"):
        study.search(of(1), [], tmp_path, seed=0)
    (tmp_path / study.STUDY).write_bytes(b"no database" * 100)
    with pytest.raises(RunError, match=r"study\.sqlite: file is not a database; mend that"):
        study.search(of(1), [], tmp_path, seed=0)


def test_a_folder_of_any_name_holds_its_own_study(tmp_path: Path) -> None:
    folder = tmp_path / "rate?{low}#%41&mode=ro"
    folder.mkdir()
    study._open(SPACE, [], folder).ask()
    assert (folder / study.STUDY).stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert len(study._open(SPACE, [], folder).trials) == 1


def test_a_trial_far_behind_the_others_is_pruned(tmp_path: Path, tiny_data: Path) -> None:
    space = Space(metric="validation_macro_f1", trials=6, keys={"trainer.learning_rate": [0.003, 1e-9]})
    found = study._open(space, [], tmp_path)
    for _ in range(study.UNPRUNED_TRIALS):
        good = found.ask(fixed_distributions={})
        good.report(2.0, 1)  # no run gets there
        found.tell(good, 2.0)
    with study._take(found, tmp_path, 9, seed=0) as trial:
        assert trial is not None
        study._try(found, trial, space, arguments(tiny_data), tmp_path)
    assert found.trials[-1].state == optuna.trial.TrialState.PRUNED


def test_a_trial_that_diverges_has_failed_and_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object) -> None:
        raise DivergedError("the loss became nan")

    monkeypatch.setattr(study, "validate", diverge)
    with pytest.raises(RunError, match="none of 2 trials came to its end"):
        study.search(of(2), [], tmp_path, seed=0)


@pytest.mark.parametrize("error", [ConfigError("trainer.frozen_layers=9: too many"), OutOfMemoryError("one text does not fit")])
def test_a_trial_whose_values_do_not_fit_has_failed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fit(config: TrainConfig, *_: object) -> float:
        if str(config.out).endswith("trial-000"):
            raise error
        return 0.5

    monkeypatch.setattr(study, "validate", fit)
    found = study.search(of(3), [], tmp_path, seed=0)
    assert (found["trials"]["fail"], found["trials"]["complete"], found["trials"]["running"]) == (1, 2, 0)
    assert f"trial 0: failed: {error}" in capsys.readouterr().err


def test_a_mistake_that_all_trials_have_in_common_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(config: TrainConfig, *_: object) -> float:
        asked.append(str(config.out))
        raise ConfigError(f"model.max_length=64: this encoder reads at most 32 tokens (run {config.out})")

    monkeypatch.setattr(study, "validate", refuse)
    for more in (study.ALIKE, 1):
        began = len(asked)
        with pytest.raises(ConfigError, match=r"model\.max_length=64: this encoder reads at most 32 tokens"):
            study.search(of(20), [], tmp_path, seed=0)
        assert len(asked) - began == more


def test_a_run_that_was_told_to_stop_is_no_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> float:
        raise StoppedError("stopped at epoch 1")

    monkeypatch.setattr(study, "validate", stop)
    with pytest.raises(StoppedError):
        study.search(of(2), [], tmp_path, seed=0)
    assert [trial.state for trial in study._open(SPACE, [], tmp_path).trials] == [optuna.trial.TrialState.RUNNING]


def test_a_trial_without_an_epoch_is_told_before_anything_is_read(tmp_path: Path) -> None:
    config = compose(TrainConfig, "train", ["trainer.epochs=0", f"data.path={tmp_path}/none.csv"])
    with pytest.raises(ConfigError, match=r"trainer.epochs=0: a trial is measured after each epoch"):
        validate(config, lambda epoch: None)


def test_the_best_trials_experiment_finds_its_files_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("rows.csv").write_text("text,label\n")
    monkeypatch.setattr(study, "validate", lambda *_: 0.5)
    study.search(of(1), ["data.path=rows.csv", "data.patch=gone.csv", "model=tiny"], tmp_path / "study", seed=0)
    monkeypatch.chdir(tmp_path)
    config = compose(TrainConfig, "train", ["--config-dir", str(tmp_path / "study"), "experiment=best"])
    assert (config.data.path, config.data.patch) == (str(tmp_path / "here" / "rows.csv"), "gone.csv")
    assert config.model.pretrained == "scratch"


@pytest.mark.parametrize(
    ("folder", "says"), [("gs://bucket/study", "lies in a local folder"), ("taken/study", "cannot be written")]
)
def test_a_folder_where_no_study_can_lie_is_refused_by_name(
    folder: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    with pytest.raises(ConfigError, match=f"folder={folder}: .*{says}"):
        sweep.run([definition(tmp_path), f"folder={folder}", "model=tiny"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.yaml", "taken"]


def test_a_sweep_of_seeds_tells_what_each_run_was_worth_and_goes_on_with_the_next_seed(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["sweep=seeds", f"folder={tmp_path / 'study'}", *arguments(tiny_data)]
    assert sweep.run([*asked, "trials=2"]) is not None
    capsys.readouterr()
    found = sweep.run([*asked, "trials=3"])
    assert found is not None
    said = capsys.readouterr().err
    assert "trial 2: seed=2" in said
    assert "trial 1" not in said
    worth = {}
    for seed in range(3):
        folder = tmp_path / "study" / f"trial-{seed:03}"
        assert f"\nseed: {seed}\n" in (folder / "config.yaml").read_text()
        lines = (folder / "history.jsonl").read_text().splitlines()
        worth[str(seed)] = max(json.loads(line)["validation_macro_f1"] for line in lines)
    assert found["validation_macro_f1"]["by_seed"] == worth
    assert found["validation_macro_f1"]["mean"] == pytest.approx(statistics.mean(worth.values()))
    assert len(set(worth.values())) > 1
    assert not {"best", "experiment", "plots"} & found.keys()
    assert not list((tmp_path / "study").rglob("best.yaml"))


def test_seeds_measured_on_the_test_rows_are_worth_what_train_says(tmp_path: Path, tiny_data: Path) -> None:
    given = [*arguments(tiny_data), "trainer.epochs=3", "export.int8=false", "export.served=fp32"]
    found = sweep.run(["sweep=seeds", "trials=2", "split=test", f"folder={tmp_path / 'study'}", *given])
    trained = train.run([*given, "seed=1", "tracking=none", f"out={tmp_path / 'run'}", f"registry={tmp_path / 'registry'}"])
    assert found is not None
    assert found["test_macro_f1"]["by_seed"]["1"] == pytest.approx(trained["test"]["macro_f1"])
    with pytest.raises(ConfigError, match="holds the study of another sweep"):
        sweep.run(["sweep=seeds", "trials=2", f"folder={tmp_path / 'study'}", *given])


def measured(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Each seed is worth its value here; nan diverges."""

    def fit(config: TrainConfig, *_: object) -> float:
        if values[config.seed] != values[config.seed]:
            raise DivergedError("the loss became nan")
        return values[config.seed]

    monkeypatch.setattr(study, "validate", fit)


def test_mean_spread_and_interval_are_those_of_a_table_of_students_t(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 0.5, 0.7, 0.6, 0.8, 0.9)
    found = study.search(read_space("seeds"), [], tmp_path, seed=0)["validation_macro_f1"]
    half = 2.776 * 0.158114 / 5**0.5  # Student's t of 4 degrees of freedom: 2.776; standard deviation: sqrt(0.1 / 4)
    assert found["mean"] == pytest.approx(0.7)
    assert found["standard_deviation"] == pytest.approx(0.158114, abs=1e-6)
    assert found["interval"] == pytest.approx([0.7 - half, 0.7 + half], abs=1e-4)


def test_a_seed_that_diverges_is_told_and_not_in_the_mean_and_one_alone_has_no_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, 0.5, float("nan"), 0.7)
    found = study.search(read_space("seeds", 3), [], tmp_path / "three", seed=0)
    assert found["validation_macro_f1"]["by_seed"] == {"0": 0.5, "2": 0.7}
    assert found["validation_macro_f1"]["mean"] == pytest.approx(0.6)
    assert found["trials"]["fail"] == 1
    said = capsys.readouterr().err
    assert "of 3 seeds, 1 failed" in said
    assert "no seed is chosen" in said
    with pytest.raises(RunError, match="of 2 seeds, 1 came to its end; a spread takes two"):
        study.search(read_space("seeds", 2), [], tmp_path / "two", seed=0)


@pytest.mark.parametrize(
    ("values", "log", "heights"),
    [
        ([1e-4, 1e-2, 1e-3], True, [0, 1, 0.5]),
        ([1, 3, 2], False, [0, 1, 0.5]),
        ([True, False, True], False, [1, 0, 1]),
        (["mean", "truncate", "max"], False, [0.5, 1, 0]),
        ([7, 7], False, [0.5, 0.5]),
    ],
)
def test_a_picture_has_a_keys_values_between_its_smallest_and_its_largest(
    values: list[Any], log: bool, heights: list[float]
) -> None:
    assert study_plots._heights(values, log).tolist() == pytest.approx(heights)
