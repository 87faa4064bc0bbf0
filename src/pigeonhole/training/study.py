"""An Optuna study of training runs: a folder with a SQLite file, a run folder for each trial, and what came of them.

A search writes its best trial as an experiment; a sweep of seeds tells mean and spread, and chooses none: the best seed is the
luckiest one.

Promises: a trial that was killed is gone on with from its checkpoint by the next worker, and belongs to one worker at a time;
with one worker the trials are a function of the definition and the seed, however often it was stopped. Workers share a disk.
"""

import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy.stats import t as student_t
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from pigeonhole import storage
from pigeonhole.command import say
from pigeonhole.configuration import compose
from pigeonhole.errors import ConfigError, DivergedError, OutOfMemoryError, RunError
from pigeonhole.options import to_flat
from pigeonhole.training import study_plots
from pigeonhole.training.checkpoint import Epoch
from pigeonhole.training.config import FILES, TrainConfig
from pigeonhole.training.corridor import validate
from pigeonhole.training.pretrained import SCRATCH, TFIDF
from pigeonhole.training.space import Range, Space, to_experiment, to_vertex, to_wandb, written

STUDY = "study.sqlite"
RANDOM_TRIALS = 5  # before the sampler begins to learn
UNPRUNED_TRIALS = 4
LOCKED_S = 60  # a worker waits so long for another one that writes
ALIKE = 3  # trials that end with one message have a mistake in common
FAILURE = "failure"  # the attribute of a failed trial that says why
OWN = ("out", "registry", "tracking.")  # keys that say where a trial went, not what it was


def search(space: Space, training: list[str], folder: Path, seed: int, split: str = "validation") -> dict[str, Any]:
    """What `uv run sweep` prints, once the study has its trials. Raises ConfigError, RunError and what training raises."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every trial; so do we
    folder.mkdir(parents=True, exist_ok=True)
    with _explained(folder):
        study = _open(space, training, folder, split)
        while True:
            with _take(study, folder, space.trials, seed) as trial:
                if trial is None:
                    break
                _try(study, trial, space, training, folder, split)
        found = study.get_trials()
    storage.write(str(folder / "wandb.yaml"), to_wandb(space, training).encode())
    storage.write(str(folder / "vertex.json"), msgspec.json.format(msgspec.json.encode(to_vertex(space))))
    conclude = _spread(found, space, folder, split) if space.of_seeds else _best(study, space, training, folder)
    return {
        "folder": str(folder),
        "trials": {state.name.lower(): sum(trial.state == state for trial in found) for state in TrialState},
        **conclude,
        "wandb": str(folder / "wandb.yaml"),
        "vertex": str(folder / "vertex.json"),
    }


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Raises RunError for a file that SQLite cannot read or write: damaged, on a full disk, another worker's for too long."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        raise RunError(
            f"{folder / STUDY}: {getattr(cause, 'orig', cause)}; mend that and give the same command again, "
            "or choose another folder"
        ) from error


def _open(space: Space, training: list[str], folder: Path, split: str = "validation") -> optuna.Study:
    with FileLock(folder / "study.lock"):
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                "sqlite://",  # a URL would end at a "?" of the folder's name; NullPool: closed after each use
                engine_kwargs={"creator": lambda: sqlite3.connect(folder / STUDY, LOCKED_S), "poolclass": NullPool},
            ),
            study_name="sweep",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(UNPRUNED_TRIALS) if space.pruning else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        measured = [] if split == "validation" else [split]
        definition = msgspec.json.encode([msgspec.structs.replace(space, trials=1), training, *measured]).decode()
        if study.user_attrs.get("definition", definition) != definition:
            raise ConfigError(
                f"folder={folder}: holds the study of another sweep, or of other keys of train; choose another folder"
            )
        study.set_user_attr("definition", definition)
    return study


@contextmanager
def _take(study: optuna.Study, folder: Path, trials: int, seed: int) -> Iterator[Trial | None]:
    """A trial that a killed worker left, or a new one; None where there are enough. It is ours while this is entered."""
    with FileLock(folder / "study.lock"):
        trial, lock = _left(study, folder, seed)
        if trial is None and len(study.get_trials(deepcopy=False)) < trials:
            number = len(study.get_trials(deepcopy=False))
            study.sampler = _sampler(seed, number)
            lock = _lock(folder, number)
            lock.acquire(timeout=0)
            trial = study.ask()
    try:
        yield trial
    finally:
        lock.release()


def _left(study: optuna.Study, folder: Path, seed: int) -> tuple[Trial | None, FileLock]:
    lock = _lock(folder, 0)
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        lock = _lock(folder, frozen.number)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # its worker lives
            continue
        if study.get_trials(deepcopy=False)[frozen.number].state.is_finished():  # it ended between the two looks
            lock.release()
            continue
        say(f"trial {frozen.number}: going on")
        study.sampler = _sampler(seed, frozen.number)
        return Trial(study, frozen._trial_id), lock
    return None, lock


def _lock(folder: Path, number: int) -> FileLock:
    """The system lets go of it when its holder ends, in whatever way."""
    return FileLock(folder / f"trial-{number:03}.lock")


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """Anew for each trial: a sampler that was begun again would draw the first trials again."""
    drawn = int(np.random.default_rng([seed, number]).integers(2**31))
    return optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=drawn)


def _try(study: optuna.Study, trial: Trial, space: Space, training: list[str], folder: Path, split: str = "validation") -> None:
    keys = [f"{key}={written(_value(trial, space, key))}" for key in space.keys]
    out = folder / f"trial-{trial.number:03}"
    say(f"trial {trial.number}: {' '.join(keys)}")
    told = set(study.trials[trial.number].intermediate_values)

    def report(epoch: Epoch) -> None:
        if epoch.number not in told:
            trial.report(getattr(epoch, space.metric), epoch.number)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        config = compose(TrainConfig, "train", [*training, "tracking=jsonl", f"out={out}", *keys])
        value = validate(config, report, split)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        say(f"trial {trial.number}: pruned")
    except (ConfigError, DivergedError, OutOfMemoryError) as error:
        trial.set_user_attr(FAILURE, str(error).replace(str(out), "FOLDER"))
        study.tell(trial, state=TrialState.FAIL)
        say(f"trial {trial.number}: failed: {error}")
        if isinstance(error, ConfigError) and _fail_alike(study):
            raise
    else:
        study.tell(trial, value)
        best = "" if space.of_seeds else f", the best so far {study.best_value:.4f}"
        say(f"trial {trial.number}: {split}_macro_f1 {value:.4f}{best}")
    shutil.rmtree(out / "checkpoint", ignore_errors=True)


def _fail_alike(study: optuna.Study) -> bool:
    """Whether a mistake is not one of this trial's own values: whatever was tried, the same was said."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    said = {trial.user_attrs.get(FAILURE) for trial in ended}
    return len(ended) >= ALIKE and len(said) == 1 and None not in said


def _value(trial: Trial, space: Space, key: str) -> bool | int | float | str:
    if space.of_seeds:
        return space.seed(trial.number)
    values = space.keys[key]
    if isinstance(values, list):
        return cast(bool | int | float | str, trial.suggest_categorical(key, values))
    if space.whole(key):
        return trial.suggest_int(key, int(values.low), int(values.high))
    return trial.suggest_float(key, values.low, values.high, log=values.scale == "log")


def _spread(found: list[FrozenTrial], space: Space, folder: Path, split: str) -> dict[str, Any]:
    """Over the seeds, which draw all but the rows. Raises RunError where fewer than two came to their end."""
    values = {space.seed(trial.number): trial.value for trial in found if trial.value is not None}
    n = len(values)
    if n < 2:
        raise RunError(f"{folder}: of {len(found)} seeds, {n} came to its end; a spread takes two")
    metric, mean, deviation = f"{split}_macro_f1", float(np.mean([*values.values()])), float(np.std([*values.values()], ddof=1))
    half = float(student_t.ppf(0.975, n - 1)) * deviation / n**0.5
    interval = f"[{mean - half:.4f}, {mean + half:.4f}]"
    say(f"{metric} over {n} seeds: mean {mean:.4f} {interval}, standard deviation {deviation:.4f}")
    if n < len(found):
        say(f"of {len(found)} seeds, {len(found) - n} failed or are still at work: not in the mean")
    say("no seed is chosen: the best one was the luckiest on these rows")
    return {
        metric: {
            "mean": mean,
            "interval": [mean - half, mean + half],  # 95 %, of the mean, by Student's t
            "standard_deviation": deviation,
            "by_seed": {str(seed): value for seed, value in values.items()},
        }
    }


def _best(study: optuna.Study, space: Space, training: list[str], folder: Path) -> dict[str, Any]:
    found = study.get_trials()
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    if not complete:
        raise RunError(f"{folder}: none of {len(found)} trials came to its end; narrow the ranges of the sweep")
    best = study.best_trial
    experiment = folder / "experiment" / "best.yaml"
    storage.write(str(experiment), _experiment(best, space, training, folder).encode())
    plots = _draw(study, complete, space, folder / "plots")
    say(f"next: uv run train --config-dir {shlex.quote(str(folder))} experiment=best")
    return {
        "best": {"trial": best.number, space.metric: best.value, "keys": best.params},
        "experiment": str(experiment),
        "plots": [str(path) for path in plots],
    }


def _experiment(best: FrozenTrial, space: Space, training: list[str], folder: Path) -> str:
    """All that sets the best trial apart from `train` without a key."""
    plain = to_flat(compose(TrainConfig, "train", []))
    chosen = [f"{key}={written(best.params[key])}" for key in space.keys]
    found = to_flat(compose(TrainConfig, "train", [*training, *chosen]))
    changed = {key: _from_anywhere(key, value) for key, value in found.items() if value != plain[key] and not key.startswith(OWN)}
    command = f"uv run train experiment=best --config-dir {shlex.quote(str(folder))}"
    return to_experiment(changed, command, f"Trial {best.number} of the sweep: {space.metric} {best.value:.4f}.")


def _from_anywhere(key: str, value: object) -> object:
    """A file that is here, by a path that means the same in any working directory."""
    named = key in FILES or (key == "model.pretrained" and value not in (SCRATCH, TFIDF))
    return str(Path(value).resolve()) if named and isinstance(value, str) and Path(value).exists() else value


def _draw(study: optuna.Study, complete: list[FrozenTrial], space: Space, folder: Path) -> list[Path]:
    values = [float(trial.value or 0.0) for trial in complete]
    log = {key for key, found in space.keys.items() if isinstance(found, Range) and found.scale == "log"}
    pictures = {
        "parallel_coordinates": study_plots.parallel_coordinates_png(
            [trial.params for trial in complete], values, space.metric, log
        )
    }
    if len(set(values)) > 1:
        importance = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
        pictures["importance"] = study_plots.importance_png(importance, space.metric)
    for name, png in pictures.items():
        storage.write(str(folder / f"{name}.png"), png)
    return [folder / f"{name}.png" for name in pictures]
