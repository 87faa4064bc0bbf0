"""`uv run chaos`: try each promise of the prediction log, and print one JSON line for each."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pigeonhole.bundle import open_bundle
from pigeonhole.chaos.promises import PROMISES, Plan
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import RegistryError, RunError
from pigeonhole.options import read_options, setting
from pigeonhole.registry import open_registry
from pigeonhole.storage import to_url

ALL = "all"


@dataclass(frozen=True)
class Options:
    """The keys of `uv run chaos`."""

    promise: str = setting(ALL, "which one", choices=(ALL, *PROMISES))
    bundle: str | None = setting(None, "URL of the bundle that is served (a small one for many records); else the production one")
    trials: int = setting(4, "kills of each kind", ge=1, le=10_000)
    records: int = setting(2000, "acknowledged predictions of a trial, about", ge=1, le=1_000_000)
    down_s: float = setting(10.0, "how long the store fails, in seconds", gt=0, le=3600)
    objects: int = setting(200, "objects that each of two replicas writes", ge=1, le=100_000)
    seed: int = setting(0, "draws the moments", ge=0)


def help_text() -> str:
    lines = [
        "usage: uv run chaos [key=value ...]",
        "",
        "Start real servers and a store, break both, and hold the log against what clients were told.",
        "One JSON line a promise; exit code 3 where one is not kept.",
        "",
        *(f"  {name:<15}{(trial.__doc__ or '').splitlines()[0]}" for name, trial in PROMISES.items()),
    ]
    return "\n".join(lines)


@with_help(help_text, Options)
def run(arguments: list[str]) -> None:
    """Raises ConfigError, RegistryError, BundleError; RunError where a promise is not kept."""
    options = read_options(Options, arguments)
    names = list(PROMISES) if options.promise == ALL else [options.promise]
    # Copied here if it is remote: while promises are tried, gs:// is the store of the trial.
    bundle = to_url(open_bundle(to_url(options.bundle) if options.bundle else in_production()).folder)
    broken = [name for name in names if not try_promise(name, bundle, options)]
    if broken:
        raise RunError(f"not kept: {', '.join(broken)}")


def try_promise(name: str, bundle: str, options: Options) -> bool:
    """One line on stdout."""
    with tempfile.TemporaryDirectory(prefix="pigeonhole-chaos-") as folder:
        plan = Plan(bundle, Path(folder), options.seed, options.trials, options.records, options.down_s, options.objects)
        outcome = PROMISES[name](plan)
    if outcome.kept is None:
        say(f"{name}: not tried, {outcome.why}")
    line: dict[str, Any] = {"promise": outcome.promise, "kept": outcome.kept, **outcome.numbers}
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()
    return outcome.kept is not False


def in_production() -> str:
    """Of the registry that serving would take. Raises RegistryError."""
    registry = open_registry()
    promoted = registry.in_production()
    if not promoted:
        raise RegistryError(f"{registry.url}: no model is in production here; give bundle=URL")
    return registry.resolve(promoted[0], "production")


main = command(run)

if __name__ == "__main__":
    main()
