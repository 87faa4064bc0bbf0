"""Where a run's numbers go besides its own folder: W&B (offline where there is no key), a JSON Lines file, or nowhere."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import msgspec

from pigeonhole.command import say
from pigeonhole.errors import ConfigError

Mode = Literal["online", "offline", "disabled", "shared"]
INIT_TIMEOUT_S = 20.0
FINISH_TIMEOUT_S = 120.0  # what is not uploaded by then stays in the run folder, for `wandb sync`


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step of training."""

    def finish(self, summary: Mapping[str, Any], plots: Mapping[str, Path], bundle: Path) -> None:
        """The end of the run: its results, its pictures and what it made."""


class NoTracker:
    def log(self, values: Mapping[str, float], step: int) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], plots: Mapping[str, Path], bundle: Path) -> None:
        pass


class JsonlTracker:
    """One JSON object a line in `tracking.jsonl` of the run folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tracking.jsonl"

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._append({"step": step, **values})

    def finish(self, summary: Mapping[str, Any], plots: Mapping[str, Path], bundle: Path) -> None:
        self._append({"summary": dict(summary)})

    def _append(self, record: Mapping[str, Any]) -> None:
        with self._file.open("ab") as stream:
            stream.write(msgspec.json.encode(record) + b"\n")


class WandbTracker:
    """Metrics, plots and the bundle as an artifact; texts never leave."""

    def __init__(self, folder: Path, name: str, project: str, entity: str | None, config: Mapping[str, Any]) -> None:
        import wandb  # 1 s to import: only a run that uses it pays

        def start(mode: Mode) -> "wandb.Run":
            return wandb.init(
                project=project,
                entity=entity,
                name=name,
                dir=folder,
                mode=mode,
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S),
            )

        later = f"this run is kept offline; later: `wandb sync {folder / 'wandb'}/offline-run-*`"
        self._wandb = wandb
        asked = _asked_mode()
        if asked or _has_key():
            try:
                self._run = start(asked or "online")
            except (wandb.errors.CommError, wandb.errors.UsageError) as error:
                say(f"W&B: {str(error).splitlines()[0]}; {later}")
                self._run = start("offline")
        else:
            say(f"W&B: no API key found, {later}")
            self._run = start("offline")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any], plots: Mapping[str, Path], bundle: Path) -> None:
        self._run.summary.update(dict(summary))
        self._run.log({name: self._wandb.Image(str(path)) for name, path in plots.items()})
        artifact = self._wandb.Artifact(f"bundle-{self._run.id}", type="bundle", metadata=dict(summary))
        artifact.add_dir(str(bundle))
        self._run.log_artifact(artifact)
        self._run.finish()


def open_tracker(backend: str, folder: Path, name: str, project: str, entity: str | None, config: Mapping[str, Any]) -> Tracker:
    if backend == "wandb":
        return WandbTracker(folder, name, project, entity, config)
    return JsonlTracker(folder) if backend == "jsonl" else NoTracker()


def _asked_mode() -> Mode | None:
    """Raises ConfigError for one that W&B does not know; it would end in a traceback there."""
    asked = os.environ.get("WANDB_MODE")
    if asked is not None and asked not in (*get_args(Mode), "dryrun", "run"):  # these two: its older names
        raise ConfigError(f"WANDB_MODE={asked}: allowed are {', '.join(get_args(Mode))}; unset it to let a key decide")
    return cast(Mode | None, asked)


def _has_key() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False, verify=False)
