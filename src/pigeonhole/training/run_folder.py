"""The folder that a run works in: a new one, the one that was asked for, or the one in which the same run was stopped.

Promises: two runs never work in one folder at a time; a finished run is never touched.
"""

import datetime
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pigeonhole import storage
from pigeonhole.command import say
from pigeonhole.errors import ConfigError

RESULT = "metrics.json"  # written last: a run folder that has it is finished
FINGERPRINT = "fingerprint"
CHECKPOINT = "checkpoint"  # the folder in it that a stopped run goes on from
RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """`path` is this process's own until it ends."""

    path: Path
    lock: FileLock


def require_run_folder(out: str | None) -> None:
    """Before the data are read. Raises ConfigError for a place where no run can work."""
    path = storage.local_path(out or str(RUNS))
    if path is None:
        raise ConfigError(f"out={out}: a run works in a local folder; the registry is what may be remote (registry=gs://…)")
    storage.require_writable("out", out or str(RUNS))
    if (path / RESULT).exists():
        raise ConfigError(f"out={out}: holds a finished run; choose another folder")


def open_run_folder(out: str | None, name: str, fingerprint: str, *, resume: bool) -> RunFolder:
    """`fingerprint`: of all that the weights depend on. Without `resume` what a stopped run left to go on from is taken out.

    Raises ConfigError for a folder where another run is at work.
    """
    if out is None:
        stopped = _stopped_run(name, fingerprint) if resume else None
        if stopped:
            say(f"going on in {stopped.path}, where the same run was stopped; resume=never begins a new one")
            return stopped
        path = _make_new(name)
    else:
        local = storage.local_path(out)
        assert local is not None  # require_run_folder has looked
        path = local
        path.mkdir(parents=True, exist_ok=True)
    folder = _take(path.resolve())
    if folder is None:
        raise ConfigError(f"out={out}: another run is at work there; wait for it, or choose another folder")
    if not resume:
        shutil.rmtree(folder.path / CHECKPOINT, ignore_errors=True)
    storage.write(str(folder.path / FINGERPRINT), f"{name} {fingerprint}".encode())
    return folder


def _stopped_run(name: str, fingerprint: str) -> RunFolder | None:
    """The newest of those that are neither finished nor at work."""
    for path in sorted(RUNS.glob(f"*-{name}"), reverse=True):
        marked = path / FINGERPRINT
        if not (path / RESULT).exists() and marked.exists() and marked.read_text() == f"{name} {fingerprint}":
            folder = _take(path.resolve())
            if folder:
                return folder
    return None


def _take(path: Path) -> RunFolder | None:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return RunFolder(path, lock)


def _make_new(name: str) -> Path:
    """Two runs may begin in one second, and at one moment."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    numbers = itertools.count(2)
    path = RUNS / f"{now}-{name}"
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            path = RUNS / f"{now}-{next(numbers)}-{name}"
        else:
            return path
