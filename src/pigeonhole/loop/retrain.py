"""`uv run retrain`: if feedback shows that production has become worse, train anew on it, and let the gate decide.

Feedback -> is production below its own test accuracy for certain? -> a part of the judged rows is set aside -> train on the rest,
with all that production learned from -> gate, on one frozen set: production's test rows and the part set aside, seen by neither.

Exit 0: the new version is in production. Exit 4: nothing moved, and the result says whether feedback or the gate held it.
Killed at any point and started again, it goes on with the run that it had begun, as long as feedback says the same.
"""

import csv
import hashlib
import io
import itertools
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from pigeonhole import storage
from pigeonhole.bundle import Bundle, open_bundle
from pigeonhole.command import command, say, with_help
from pigeonhole.configuration import compose
from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.load import OutOfScope
from pigeonhole.dataset.read import Row
from pigeonhole.dataset.split import Split, split_rows
from pigeonhole.dataset.taxonomy import Taxonomy, read_taxonomy
from pigeonhole.drift.settings import AUDIT_SHARE
from pigeonhole.environment import read_variables, share, variable
from pigeonhole.errors import BundleError, ConfigError, GateError, RegistryError
from pigeonhole.evaluation.labelled import read_own_rows
from pigeonhole.loop.harvest import Harvest, harvest
from pigeonhole.metrics import wilson_difference, wilson_interval
from pigeonhole.options import read_options, setting, to_flat
from pigeonhole.prediction_log import require_log
from pigeonhole.promotion.promote import PromoteConfig
from pigeonhole.registry import Registry, open_registry
from pigeonhole.training.config import TrainConfig
from pigeonhole.training.run_folder import RESULT

USAGE = """usage: retrain [key=value …] [KEY OF train=value …] [gate.KEY OF promote=value …]

Train production anew on the feedback of the last hours, if feedback shows that it has become worse; the gate decides.
Keys of `train` default to what production was trained with.
"""
# The keys of production that its successor takes over.
LEARNED = (
    "model.",
    "trainer.",
    "tfidf.",
    "export.",
    "serve.",
    "decision.",
    "tracking.",
    "data.task",
    "data.trigger_words",
    "data.max_chars",
    "data.slices",
    "data.split_seed",
)
GROUPS = ("model", "trainer", "export", "tracking")  # of `train`: a file of configs/ each
LEAST_REFERENCE = 30  # a reference of fewer rows would let almost any change pass
VERDICT = "verdict.json"  # in a folder of rows: what came of them; one without is of a run that was stopped


@dataclass(frozen=True)
class RetrainConfig:
    name: str | None = setting(None, "the model's name in the registry; unset: the only one that is there")
    registry: str | None = setting(None, "URL of the registry; unset: PIGEONHOLE_REGISTRY, or registry")
    log: str | None = setting(None, "URL of the prediction log; unset: PIGEONHOLE_LOG, or log")
    window_hours: float = setting(24.0, "how far back predictions and their feedback count", gt=0, le=8760)
    least_judged: int = setting(50, "fewer judged predictions decide nothing", ge=10)
    set_aside: float = setting(0.4, "share of the judged texts that is kept for the gate", gt=0, lt=1)
    taxonomy: str | None = setting(
        None, "a labels.yaml: production's rows and the log's words get its labels; trains in any case"
    )
    audit_share: float | None = setting(
        None, "of the drift service whose review queue was answered; unset: PIGEONHOLE_AUDIT_SHARE, or 0.02", gt=0, le=1
    )
    always: bool = setting(False, "train even where feedback does not show that production has become worse")
    rows: str = setting("retrain", "URL of a folder for the rows: train.csv, validation.csv, frozen.csv, in a folder each time")
    run: str = setting("runs", "local folder for the training run")


@dataclass(frozen=True)
class Variables:
    audit_share: float = variable("PIGEONHOLE_AUDIT_SHARE", AUDIT_SHARE, "as the drift service has it", share(0.0001, 1))


@dataclass(frozen=True)
class Rows:
    """What the candidate learns from, is selected by and is judged on; no text is in two of them."""

    train: list[Row]
    validation: list[Row]
    frozen: list[Row]  # production's test rows, then those set aside
    learned: int  # of the train rows, from feedback
    set_aside: int  # of the frozen rows, from feedback
    outside: OutOfScope  # production's own: what its rule of what is out of scope was fitted to, and what it was measured on

    @property
    def reference(self) -> list[Row]:
        """What the successor's traffic is compared with: rows of the present world, or all frozen ones where those are few."""
        return self.frozen[-self.set_aside :] if self.set_aside >= LEAST_REFERENCE else self.frozen


@with_help(USAGE, RetrainConfig)
def run(arguments: list[str]) -> dict[str, Any]:
    config, training, gating = check_arguments(arguments)
    began = time.perf_counter()
    registry = open_registry(config.registry)
    production = _production(registry, config.name)
    taxonomy = read_taxonomy(config.taxonomy) if config.taxonomy else None
    found = _harvest(config, production, taxonomy)
    result = _told(production, found)
    if taxonomy is None:
        _decide(config, found, result)
    rows = divide(production, found, config.set_aside, taxonomy)
    if taxonomy is None:
        _require_new_texts(rows, found, result)
    say(f"{rows.learned} judged texts to learn from, {rows.set_aside} set aside for the gate")
    recipe = [*learned_keys(production, training), *training, f"name={production.manifest.name}", f"registry={registry.url}"]
    folder = open_folder(config.rows, _fingerprint(production, recipe, rows), datetime.now(UTC))
    keys = [*write(folder, rows), *recipe]
    # torch and transformers take seconds to import, which a feedback that decides nothing should not wait for.
    from pigeonhole.promotion import promote
    from pigeonhole.training import train

    out = f"{config.run}/{folder.rsplit('/', 1)[-1]}-retrain"
    trained = _trained(folder) or _trained(out) or train.run([*keys, f"out={out}"])
    storage.write(storage.to_url(storage.join(folder, RESULT)), msgspec.json.encode(trained))  # `out` may go with its machine
    result |= {"candidate": trained["version"], "rows": _counts(rows), "frozen": storage.join(folder, "frozen.csv")}
    asked = [f"candidate={trained['version']}", f"name={production.manifest.name}", f"registry={registry.url}", *gating]
    try:
        verdict = promote.run(asked)
    except GateError as error:
        result |= {"decision": "GATE", "gate": error.result, "seconds": _seconds(began)}
        _close_folder(folder, result)
        raise GateError(str(error), result) from error
    result |= {"decision": "PROMOTED", "gate": verdict, "seconds": _seconds(began)}
    _close_folder(folder, result)
    return result


main = command(run)


def check_arguments(arguments: Sequence[str]) -> tuple[RetrainConfig, list[str], list[str]]:
    """The keys of this command, those of `train` and those of the gate, each held to its range. Raises ConfigError."""
    own, training, gating = split_arguments(arguments)
    config = read_options(RetrainConfig, own)
    compose(TrainConfig, "train", training)
    compose(PromoteConfig, "promote", gating)
    return config, training, gating


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Those of this command, those of `train` and those of the gate. Raises ConfigError for keys that the loop itself sets."""
    own_keys = set(RetrainConfig.__dataclass_fields__)
    own, training, gating = [], [], []
    for argument in arguments:
        key = argument.partition("=")[0]
        if key in ("out", "reference_path") or (key.startswith("data.") and not key.startswith(LEARNED)):
            raise ConfigError(f"{argument}: retrain itself says what to learn from and where; leave {key} out")
        if key.startswith(("gate.", "probes.")):
            gating.append(argument)
        elif key.startswith(LEARNED) or key in ("seed", "experiment", *GROUPS):
            training.append(argument)
        else:
            own.append(argument)
    if unknown := [argument for argument in own if argument.partition("=")[0] not in own_keys and "=" in argument]:
        raise ConfigError(f"{unknown[0]}: there is no such key; allowed are the keys that --help lists")
    return own, training, gating


def _production(registry: Registry, name: str | None) -> Bundle:
    models = [name] if name else registry.models()
    if len(models) != 1:
        raise RegistryError(f"{registry.url}: write name=NAME; models here: {', '.join(models) or 'none'}")
    found = open_bundle(storage.to_url(registry.resolve(models[0], "production")))
    if "test" not in found.manifest.metrics:
        raise BundleError(f"{found.url}: nothing was measured on it to compare feedback with; promote one that `train` made")
    return found


def _harvest(config: RetrainConfig, production: Bundle, taxonomy: Taxonomy | None) -> Harvest:
    end = datetime.now(UTC) + timedelta(seconds=1)
    manifest = production.manifest
    log = config.log or os.environ.get("PIGEONHOLE_LOG") or "log"
    require_log("log", log)
    start = end - timedelta(hours=config.window_hours)
    asked = config.audit_share or read_variables(Variables, os.environ).audit_share
    return harvest(storage.to_url(log), start, end, manifest.name, manifest.version, manifest.labels, taxonomy, asked)


def _told(production: Bundle, found: Harvest) -> dict[str, Any]:
    live, test = found.accuracy, production.manifest.metrics["test"]
    tested = wilson_interval(test["accuracy"] * test["n"], test["n"])
    fall = wilson_difference(tested, live)  # the test rows are a sample too: live predictions are soon many more than they are
    return {
        "model": production.manifest.name,
        "production": production.manifest.version,
        "test_accuracy": test["accuracy"],
        "live_accuracy": live.estimate if found.weighed else None,
        "interval": [live.low, live.high],
        "fall": [fall.estimate, fall.low, fall.high],
        "judged": found.judged,
        "without_text": found.without_text,
        "unknown_labels": found.unknown_labels,
    }


def _decide(config: RetrainConfig, found: Harvest, result: dict[str, Any]) -> None:
    """Raises GateError where there is no reason to train."""
    if found.judged < config.least_judged:
        why = f"{found.judged} predictions are judged, {config.least_judged} are needed"
    elif len(found.rows) < config.least_judged:
        why = f"{len(found.rows)} judged texts are in the log, {config.least_judged} are needed (text policy hash or none?)"
    elif not config.always and result["fall"][1] <= 0:
        live = f"{found.accuracy.estimate:.3f} [{found.accuracy.low:.3f}, {found.accuracy.high:.3f}]"
        why = f"live accuracy is {live}, not below the {result['test_accuracy']:.3f} of its test for certain"
    else:
        return
    raise _waits(why, result)


def _require_new_texts(rows: Rows, found: Harvest, result: dict[str, Any]) -> None:
    """Raises GateError where there is nothing to learn, or nothing to judge by whether it was learned."""
    if not (rows.learned and rows.set_aside):
        why = (
            f"{rows.learned + rows.set_aside} of the judged texts are new to production, which has had the other "
            f"{len(found.rows) - rows.learned - rows.set_aside} among its rows; some to learn and some to set aside are needed"
        )
        raise _waits(why, result)


def _waits(why: str, result: dict[str, Any]) -> GateError:
    return GateError(f"no retraining: {why}", {**result, "decision": "WAIT", "reason": why})


def divide(production: Bundle, found: Harvest, set_aside: float, taxonomy: Taxonomy | None = None) -> Rows:
    """Old rows stay on their side; a judged text that production has had in any of its rows is left out.

    With a taxonomy all rows have its labels.
    """
    own = read_own_rows(production)[1]
    split, outside = _renamed(own.split, taxonomy), own.out_of_scope
    had = [row.text for row in (*split.train, *split.validation, *split.test)]
    known = set(map(normalise, (*had, *outside.fitted, *outside.test)))
    new = [row for row in found.rows if normalise(row.text) not in known]
    parts = split_rows(new, 0.0, set_aside, seed=0, task=production.manifest.task)
    return Rows(
        train=[*split.train, *parts.train],
        validation=split.validation,
        frozen=[*split.test, *parts.test],
        learned=len(parts.train),
        set_aside=len(parts.test),
        outside=outside,
    )


def _renamed(split: Split, taxonomy: Taxonomy | None) -> Split:
    if taxonomy is None:
        return split
    sides = (split.train, split.validation, split.test)
    return Split(*(list(taxonomy.apply(side, whole=False)) for side in sides))


def open_folder(rows: str, fingerprint: str, now: datetime) -> str:
    """The latest one that a run of this fingerprint was stopped in, or a new one."""
    files = set(storage.list_files(storage.to_url(rows)))
    begun = [name.removesuffix(f"/{fingerprint}") for name in files if name.endswith(f"/{fingerprint}")]
    stopped = [name for name in begun if f"{name}/{VERDICT}" not in files]
    if stopped:
        folder = storage.join(rows, max(stopped))
        say(f"going on in {folder}, where the same run was stopped")
        return folder
    folder = new_folder(rows, now)
    storage.write(storage.to_url(storage.join(folder, fingerprint)), b"")
    return folder


def _fingerprint(production: Bundle, recipe: Sequence[str], rows: Rows) -> str:
    """Of all that the candidate follows from."""
    return hashlib.sha256(msgspec.json.encode([production.manifest.version, recipe, rows])).hexdigest()[:16]


def _trained(folder: str) -> dict[str, Any] | None:
    """What `train` had said there before the run was stopped."""
    said = storage.to_url(storage.join(folder, RESULT))
    return msgspec.json.decode(storage.read(said), type=dict[str, Any]) if storage.exists(said) else None


def _close_folder(folder: str, result: dict[str, Any]) -> None:
    storage.write(storage.to_url(storage.join(folder, VERDICT)), msgspec.json.format(msgspec.json.encode(result)))


def new_folder(rows: str, now: datetime) -> str:
    """Named after the second, and numbered where other runs began in it. An empty train.csv claims it."""
    second = f"{now:%Y%m%d-%H%M%S}"
    names = itertools.chain([second], (f"{second}-{number}" for number in itertools.count(2)))
    folders = (storage.join(rows, name) for name in names)
    return next(folder for folder in folders if storage.create(storage.to_url(storage.join(folder, "train.csv")), b""))


def write(folder: str, rows: Rows) -> list[str]:
    """The files, and the keys of `train` that name them."""
    keys = ["data.text=text", "data.label=label"]
    files = [
        ("data.path", "train.csv", rows.train),
        ("data.validation_path", "validation.csv", rows.validation),
        ("data.test_path", "frozen.csv", rows.frozen),
        ("reference_path", "reference.csv", rows.reference),
    ]
    if rows.outside.fitted:
        files.append(("data.out_of_scope_path", "out_of_scope.csv", _unlabelled(rows.outside.fitted)))
        files.append(("data.out_of_scope_test_path", "out_of_scope_test.csv", _unlabelled(rows.outside.test)))
    for key, name, part in files:
        url = storage.to_url(storage.join(folder, name))
        storage.write(url, _csv(part))
        keys.append(f"{key}={url}")
    return keys


def _unlabelled(texts: Sequence[str]) -> list[Row]:
    """The label of such rows is not read."""
    return [Row(text, "out_of_scope", 0) for text in texts]


def _csv(rows: Sequence[Row]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(("text", "label"))
    writer.writerows((row.text, row.label) for row in rows)
    return stream.getvalue().encode()


def learned_keys(production: Bundle, training: Sequence[str] = ()) -> list[str]:
    """How production was trained, as keys of `train`, but for what a group or an experiment among `training` says.

    To Hydra a key that is written out stands above any file, wherever on the line it is.
    """
    recorded: dict[str, Any] = production.manifest.provenance.get("config", {})
    learned = {key: value for key, value in recorded.items() if key == "seed" or key.startswith(LEARNED)}
    left = learned.keys() - _chosen_keys(training)
    return [f"{key}={_value(value)}" for key, value in learned.items() if key in left]


def _chosen_keys(training: Sequence[str]) -> set[str]:
    """All keys of a group that was chosen, and those that the files of all choices change."""
    choices = [argument for argument in training if argument.partition("=")[0] in ("experiment", *GROUPS)]
    if not choices:
        return set()
    groups = {argument.partition("=")[0] for argument in choices}
    default, chosen = (to_flat(compose(TrainConfig, "train", arguments)) for arguments in ([], choices))
    return {key for key, value in chosen.items() if key.partition(".")[0] in groups or value != default[key]}


def _value(value: object) -> str:
    """As Hydra reads it: what is no plain word stands in quotes."""
    if value is None:
        return "null"
    if isinstance(value, str) and not re.fullmatch(r"[\w.:/-]+", value):
        return "'" + value.replace("'", r"\'") + "'"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _counts(rows: Rows) -> dict[str, int]:
    return {
        "train": len(rows.train),
        "validation": len(rows.validation),
        "frozen": len(rows.frozen),
        "learned": rows.learned,
        "set_aside": rows.set_aside,
    }


def _seconds(began: float) -> dict[str, float]:
    return {"total": round(time.perf_counter() - began, 3)}


if __name__ == "__main__":
    main()
