"""`uv run log-erase`: take records out of the prediction log, and leave no copy of them behind.

An object that holds such a record is written anew without it, read back, and only then deleted; killed at any point, the command
is given again. It reaches the store and the spool of this host; a bucket that keeps versions or deleted objects keeps them.
"""

import contextlib
import gzip
import hashlib
import os
import re
import time
import zlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

import msgspec

from pigeonhole import storage
from pigeonhole.command import command, say, with_help
from pigeonhole.drift.compact import create_compacted, hours_of, lines_of, objects_of
from pigeonhole.environment import describe_variables, read_variables, variable
from pigeonhole.errors import NOT_AS_TYPED, ConfigError, NotFoundError, RunError
from pigeonhole.options import key_lines, read_options, setting
from pigeonhole.prediction_log import LogWriter
from pigeonhole.prediction_log.record import Kind, is_intact
from pigeonhole.prediction_log.spool import size_of, spool_folder
from pigeonhole.prediction_log.window import COMPACTED, SHIPPED, DamagedObjectError, require_log

PATIENCE_S = 30.0  # for a living server to ship what it holds; it does so every second
ASIDE_S = 60.0  # no writer needs so long from a file's first byte to its name


@dataclass(frozen=True)
class Settings:
    log: str = variable("PIGEONHOLE_LOG", "log", "URL of the prediction log")
    spool: str | None = variable("PIGEONHOLE_SPOOL", None, "local folder in which records wait for a remote log")


@dataclass(frozen=True)
class Options:
    """The keys of `uv run log-erase`."""

    key: str | None = setting(None, "a prediction id or a request id: what was predicted under it, and all feedback on that")
    keys: str | None = setting(None, "URL of a file with one such id a line")
    before: str | None = setting(None, "a date as 2026-01-31: every record of the days before it")
    days: int | None = setting(None, "every record older than so many whole days", ge=1, le=36500)


@dataclass
class Tally:
    """What one run did."""

    records: int = 0
    feedback: int = 0
    objects_rewritten: int = 0
    objects_deleted: int = 0
    unreadable: list[str] = field(default_factory=list)  # nobody can say what is in them


class Line(msgspec.Struct, frozen=True):
    """By what a line of either kind is found."""

    prediction_id: str
    request_id: str = ""


def help_text() -> str:
    lines = [
        "usage: [VARIABLE=value ...] uv run log-erase key=ID | keys=URL | before=DATE | days=N",
        "",
        "Erase records from the prediction log: by id (--key ID is understood too), or all that are old. No copy is left in the",
        "log's objects, compacted or not, nor in the spool of this host. Do not let log-compact run at the same time.",
        "",
        *key_lines(Options),
        "",
        "The environment sets (variable, default, meaning):",
        describe_variables(Settings),
    ]
    return "\n".join(lines) + "\n"


def erase_keys(log: str, keys: set[str], spool: str | None = None, patience_s: float = PATIENCE_S) -> Tally:
    """All records with one of these prediction or request ids, and all feedback on them. Raises StorageError.

    Raises RunError where a living writer does not let go of its spool, and where an object cannot be read: it may hold one.
    """
    _settle_spool(log, spool, patience_s)
    _remove_asides(log)
    tally = Tally()
    wanted = keys | _predicted_under(log, keys, tally)
    for kind in get_args(Kind):
        for _, folder in hours_of(log, kind):
            for name in objects_of(folder):
                erased = _erase_from(folder, name, wanted, tally)
                tally.records += erased if kind == "predictions" else 0
                tally.feedback += erased if kind == "feedback" else 0
    if tally.unreadable:
        names = ", ".join(sorted(set(tally.unreadable))[:3])
        raise RunError(f"{len(set(tally.unreadable))} objects cannot be read and may hold a copy ({names}); mend or delete them")
    return tally


def erase_before(log: str, first_kept: date, spool: str | None = None) -> Tally:
    """All objects of the days before `first_kept` (UTC). Raises StorageError, and RunError like erase_keys."""
    _settle_spool(log, spool, PATIENCE_S)
    _remove_asides(log)
    tally = Tally()
    for kind in get_args(Kind):
        for partition, folder in hours_of(log, kind):
            # What is in other folders is not the log's.
            if partition.startswith("date=") and partition < f"date={first_kept.isoformat()}":
                for name in objects_of(folder):
                    with contextlib.suppress(NotFoundError):  # another run was faster
                        storage.delete(storage.join(folder, name))
                        tally.objects_deleted += 1
    return tally


def _settle_spool(log: str, spool: str | None, patience_s: float) -> None:
    """Ship what dead writers left, and wait until the living have shipped what they hold now."""
    for kind in get_args(Kind):
        folder = spool_folder(log, spool) / kind
        waiting = {path for path in folder.glob("*.jsonl") if size_of(path)} if folder.is_dir() else set()
        if not waiting:
            continue
        with LogWriter(log, kind, spool=spool) as writer:
            writer.flush()
        deadline = time.monotonic() + patience_s
        while any(path.exists() for path in waiting):
            if time.monotonic() > deadline:
                raise RunError(f"{folder}: a running server still holds records here; run again when its store takes them")
            time.sleep(0.1)


def _remove_asides(log: str) -> None:
    """What a writer that was killed left beside the objects of a local log."""
    root = storage.local_path(log)
    for path in root.glob("*/date=*/hour=*/.*.tmp") if root else []:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ASIDE_S:
                path.unlink()


def _predicted_under(log: str, keys: set[str], tally: Tally) -> set[str]:
    """The prediction ids of these requests."""
    found = set()
    for _, folder in hours_of(log, "predictions"):
        for name in objects_of(folder):
            lines = _lines(storage.join(folder, name), tally)
            found |= {head.prediction_id for head in map(_head, lines or []) if head is not None and head.request_id in keys}
    return found


def _erase_from(folder: str, name: str, wanted: set[str], tally: Tally) -> int:
    """How many lines were taken out of one object."""
    url = storage.join(folder, name)
    lines = _lines(url, tally)
    if lines is None:
        return 0
    kept = [line for line in lines if not _is_wanted(line, wanted)]
    if len(kept) == len(lines):
        return 0
    if kept:
        _create_without(folder, name, kept)
        tally.objects_rewritten += 1
    else:
        tally.objects_deleted += 1
    with contextlib.suppress(NotFoundError):
        storage.delete(url)
    return len(lines) - len(kept)


def _create_without(folder: str, name: str, lines: list[bytes]) -> None:
    """Under a name of its own; Parquet has no place for a damaged line. Raises RunError where it does not read back."""
    if name.endswith(COMPACTED) and all(map(_head, lines)):
        create_compacted(folder, lines)
        return
    data = b"\n".join(lines) + b"\n"
    stem = re.sub("-erased-[0-9a-f]{16}$", "", name.removesuffix(SHIPPED).removesuffix(COMPACTED))
    url = storage.join(folder, f"{stem}-erased-{hashlib.sha256(data).hexdigest()[:16]}{SHIPPED}")
    storage.create(url, gzip.compress(data, mtime=0))
    if gzip.decompress(storage.read(url)) != data:
        raise RunError(f"{url}: does not read back as it was written; its source is kept, delete it and run again")


def _lines(url: str, tally: Tally) -> list[bytes] | None:
    """None for an object that cannot be read, and for one that is gone meanwhile."""
    try:
        return lines_of(url)
    except NotFoundError:
        return None
    except (gzip.BadGzipFile, EOFError, zlib.error, DamagedObjectError):
        tally.unreadable.append(url)
        return None


def _head(line: bytes) -> Line | None:
    if not is_intact(line):
        return None
    with contextlib.suppress(*NOT_AS_TYPED):
        return msgspec.json.decode(line, type=Line)
    return None


def _is_wanted(line: bytes, wanted: set[str]) -> bool:
    """A damaged line is nobody's record, and goes where it so much as mentions one of the ids."""
    head = _head(line)
    if head is None:
        return any(key.encode() in line for key in wanted)
    return head.prediction_id in wanted or head.request_id in wanted


@with_help(help_text)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, _without_dashes(arguments))
    settings = read_variables(Settings, os.environ)
    given = [name for name, value in vars(options).items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"{' and '.join(given) or 'nothing'} is given; give one of key=, keys=, before=, days=")
    if not spool_folder(settings.log, settings.spool).is_dir():  # what waits there may be all that there is
        require_log("PIGEONHOLE_LOG", settings.log)
    if options.key or options.keys:
        tally = erase_keys(settings.log, _keys(options), settings.spool)
    else:
        tally = erase_before(settings.log, _first_kept(options), settings.spool)
    say(f"{tally.records} predictions and {tally.feedback} feedback erased by id, {tally.objects_deleted} objects deleted whole")
    return {"log": settings.log, **vars(tally)}


def _without_dashes(arguments: list[str]) -> list[str]:
    """`--key ID` and `--key=ID` as `key=ID`."""
    found: list[str] = []
    for argument in arguments:
        if found and re.fullmatch("--[a-z]+", found[-1]):
            found[-1] = f"{found[-1][2:]}={argument}"
        else:
            found.append(argument)
    return [argument.removeprefix("--") for argument in found]


def _keys(options: Options) -> set[str]:
    try:
        keys = set(storage.read(options.keys).decode().split()) if options.keys else {options.key or ""}
    except UnicodeDecodeError as error:
        raise ConfigError(f"keys={options.keys}: is no text in UTF-8; a file with one id a line is needed") from error
    wrong = [key for key in sorted(keys) if not re.fullmatch("[A-Za-z0-9._-]{1,64}", key)]
    if wrong or not keys:
        raise ConfigError(f"{len(wrong)} of {len(keys)} keys are no ids: up to 64 letters, digits, '.', '_' and '-' are allowed")
    return keys


def _first_kept(options: Options) -> date:
    if options.days is not None:
        return (datetime.now(UTC) - timedelta(days=options.days)).date()
    try:
        return date.fromisoformat(options.before or "")
    except ValueError as error:
        raise ConfigError(f"before={options.before}: expected a date such as 2026-01-31") from error


main = command(run)

if __name__ == "__main__":
    main()
