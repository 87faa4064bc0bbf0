"""What a sweep varies: `configs/sweep/<name>.yaml`, checked against the keys of `train`, and told to W&B and Vertex AI.

One definition, three readers: `uv run sweep` (Optuna, on this machine), a W&B sweep file, a tuning job of Vertex AI. A sweep
over `seed` is no search: it repeats one recipe, and nothing is chosen. Needs neither torch nor Optuna.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml
from msgspec import Meta

from pigeonhole import storage
from pigeonhole.configuration import compose, config_folder, parse_yaml
from pigeonhole.errors import ConfigError
from pigeonhole.options import Setting, nearest, settings_of
from pigeonhole.training.config import TrainConfig

Metric = Literal["validation_macro_f1"]  # of each epoch (checkpoint.Epoch): what the trainer itself chooses its best epoch by
Choice = bool | int | float | str
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
SEED = "seed"
# Not what a validation split can choose: its macro-F1 is the same, or of other rows.
FOREIGN = (
    *("out", "registry", "name", "resume", "reference_path"),
    *("tracking.", "data.", "export.", "serve.", "decision."),
)


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both ends are in it; whole numbers where the key takes whole numbers."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"


class Space(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    metric: Metric
    trials: Annotated[int, Meta(ge=1, le=10_000)]
    keys: Annotated[dict[str, Range | Annotated[list[Choice], Meta(min_length=2)]], Meta(min_length=1)]
    pruning: bool = True

    def whole(self, key: str) -> bool:
        return _settings()[key].type == "int"

    def ends(self, key: str) -> tuple[Choice, Choice]:
        """The first and the last value of a key."""
        values = self.keys[key]
        if not isinstance(values, Range):
            return values[0], values[-1]
        return (int(values.low), int(values.high)) if self.whole(key) else (values.low, values.high)

    @property
    def of_seeds(self) -> bool:
        """Whether one recipe is repeated; then no other key is varied."""
        return SEED in self.keys

    def seed(self, trial: int) -> int:
        values = self.keys[SEED]
        return int(values.low) + trial if isinstance(values, Range) else int(values[trial])


def read_space(name: str, trials: int | None = None) -> Space:
    """A file of `configs/sweep/` by its name, or any file by its path, with `trials` in place of its own.

    Raises ConfigError, StorageError.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else config_folder() / "sweep" / f"{name}.yaml"
    if not storage.is_local_file(str(path)):
        known = sorted(file.stem for file in (config_folder() / "sweep").glob("*.yaml"))
        raise ConfigError(
            f"sweep={name}: there is no such sweep; {nearest(name, known)}allowed: {', '.join(known)}, or a .yaml file"
        )
    try:
        space = msgspec.convert(parse_yaml(storage.read(str(path)).decode()), Space, strict=False)  # of a range, too
    except ValueError as error:  # of parse_yaml, of UTF-8 and of msgspec
        allowed = f"; allowed: {', '.join(get_args(Metric))}" if "$.metric" in str(error) else ""
        raise ConfigError(f"{path}: {error}{allowed}") from error
    keys = {key: _with_numbers(values) for key, values in space.keys.items()}
    space = msgspec.structs.replace(space, keys=keys, trials=trials or space.trials)
    for key, values in space.keys.items():
        _check(path, key, values)
    if space.of_seeds:
        _check_seeds(path, space)
    return space


def check_training(space: Space, training: Sequence[str]) -> None:
    """Whether the keys of `train` beside a sweep leave it its own, and go with both ends of them. Raises ConfigError."""
    for argument in training:
        key = argument.partition("=")[0]
        if key in space.keys:
            raise ConfigError(f"{argument}: the sweep itself says so; leave {key} out")
    for end in (0, -1):
        compose(TrainConfig, "train", [*training, *(f"{key}={written(space.ends(key)[end])}" for key in space.keys)])


def _with_numbers(values: Range | list[Choice]) -> Range | list[Choice]:
    """1e-4 is a word to PyYAML, and a number to `train`."""
    if isinstance(values, Range):
        return values
    return [float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value for value in values]


def _settings() -> dict[str, Setting]:
    return {found.key: found for found in settings_of(TrainConfig)}


def _check(path: Path, key: str, values: Range | list[Choice]) -> None:
    known = _settings()
    if key not in known or key.startswith(FOREIGN):
        can = [found for found in known if not found.startswith(FOREIGN)]
        raise ConfigError(f"{path}: {key}: no key that a sweep can vary; {nearest(key, can)}allowed: {', '.join(can)}")
    setting = known[key]
    ends = _ends(values, whole=setting.type.startswith("int"))
    if isinstance(values, Range):
        if setting.type not in ("int", "float"):
            raise ConfigError(f"{path}: {key}: takes {setting.expected}, not a range; list its values: [a, b]")
        if not values.low < values.high or (values.scale == "log" and values.low <= 0):
            raise ConfigError(f"{path}: {key}: expected low < high, and low > 0 on a log scale")
        if setting.type == "int" and values.scale == "log":
            raise ConfigError(f"{path}: {key}: takes whole numbers, which have no log scale here; list its values: [16, 32, 64]")
    if isinstance(values, list) and len({*values}) < len(values):
        raise ConfigError(f"{path}: {key}: a value stands twice; each one once")
    for value in ends:
        if not setting.allowed.holds(value) or not _is_of(setting.type.removesuffix(" | None"), value):
            raise ConfigError(f"{path}: {key}: {value} is not allowed; expected {setting.expected}")


def _check_seeds(path: Path, space: Space) -> None:
    others = ", ".join(key for key in space.keys if key != SEED)
    if others:
        raise ConfigError(
            f"{path}: seed: beside {others} a lucky seed would pass for a better recipe; vary seed alone, which tells the spread"
        )
    if space.pruning:
        raise ConfigError(f"{path}: pruning: a mean needs every seed to its end; write pruning: false")
    values = space.keys[SEED]
    most = int(values.high - values.low) + 1 if isinstance(values, Range) else len(values)
    if not 2 <= space.trials <= most:
        raise ConfigError(f"{path}: trials={space.trials}: one for each seed, expected 2 to {most}")


def _ends(values: Range | list[Choice], *, whole: bool) -> list[Choice]:
    if isinstance(values, list):
        return values
    return [int(end) if whole and end.is_integer() else end for end in (values.low, values.high)]


def _is_of(kind: str, value: Choice) -> bool:
    if kind in ("int", "float"):
        return isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool)
    return isinstance(value, bool if kind == "bool" else str)


def written(value: Choice) -> str:
    """A value as `key=value` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_wandb(space: Space, training: list[str]) -> str:
    """A sweep file for `wandb sweep FILE`; its agents run `train` with `training` and the values that W&B chose."""
    parameters: dict[str, Any] = {}
    for key, values in _keys(space).items():
        if isinstance(values, Range):
            low, high = space.ends(key)
            kind = {"linear": "int_uniform" if space.whole(key) else "uniform", "log": "log_uniform_values"}[values.scale]
            parameters[key] = {"distribution": kind, "min": low, "max": high}
        else:
            parameters[key] = {"values": list(values)}
    sweep = {
        "command": ["${env}", "uv", "run", "train", *training, "tracking=wandb", "${args_no_hyphens}"],
        "method": "grid" if space.of_seeds else "bayes",
        "metric": {"name": space.metric, "goal": "maximize"},
        "parameters": parameters,
        "run_cap": space.trials,
    }
    if space.pruning:
        sweep["early_terminate"] = {"type": "hyperband", "min_iter": 1}
    return yaml.safe_dump(sweep, sort_keys=False)


def to_vertex(space: Space) -> dict[str, Any]:
    """The studySpec of a hyperparameter tuning job; worker.py reports the metric."""
    return {
        "metrics": [{"metricId": space.metric, "goal": "MAXIMIZE"}],
        "parameters": [_vertex_parameter(space, key, values) for key, values in _keys(space).items()],
        "measurementSelectionType": "LAST_MEASUREMENT",
        **({"algorithm": "GRID_SEARCH"} if space.of_seeds else {}),
    }


def _keys(space: Space) -> Mapping[str, Range | list[Choice]]:
    """Of seeds, those of its trials: W&B and Vertex AI go through a list, each one once."""
    return {SEED: [space.seed(trial) for trial in range(space.trials)]} if space.of_seeds else space.keys


def _vertex_parameter(space: Space, key: str, values: Range | list[Choice]) -> dict[str, Any]:
    if isinstance(values, Range):
        kind = "integerValueSpec" if space.whole(key) else "doubleValueSpec"
        scale = {"linear": "UNIT_LINEAR_SCALE", "log": "UNIT_LOG_SCALE"}[values.scale]
        low, high = space.ends(key)
        return {"parameterId": key, kind: {"minValue": low, "maxValue": high}, "scaleType": scale}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return {"parameterId": key, "discreteValueSpec": {"values": sorted(values)}}
    return {"parameterId": key, "categoricalValueSpec": {"values": [written(value) for value in values]}}


def to_experiment(changed: Mapping[str, object], command: str, says: str) -> str:
    """An experiment file that sets the keys of `changed`; `command` is how it is asked for."""
    nested: dict[str, Any] = {}
    for key, value in changed.items():
        *groups, leaf = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return f"# @package _global_\n# {command}\n# {says}\n{yaml.safe_dump(nested, sort_keys=False)}"
