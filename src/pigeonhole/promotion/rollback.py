"""`uv run rollback`: production goes back to the version before, by compare-and-swap; a running service follows within seconds.

The version that it returns to is opened and verified first. The history says who did it, why, from what and to what.
"""

import time
from dataclasses import dataclass
from typing import Any

from pigeonhole.bundle import open_bundle
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import RegistryError
from pigeonhole.options import read_options, setting
from pigeonhole.registry import Registry, open_registry

USAGE = """usage: rollback [key=value …]

Production goes back to the version before, or to=VERSION, after that has been verified; a running service follows within seconds.

uv run rollback reason='too many refunds in review'"""


@dataclass(frozen=True)
class RollbackConfig:
    name: str | None = setting(None, "the model's name in the registry; unset: the only one that is there")
    to: str | None = setting(None, "version to return to; unset: the one before the present one")
    reason: str = setting("rolled back by hand", "why; the history keeps it")
    registry: str | None = setting(None, "URL of the registry; unset: PIGEONHOLE_REGISTRY, or registry")


@with_help(USAGE, RollbackConfig)
def run(arguments: list[str]) -> dict[str, Any]:
    config = read_options(RollbackConfig, arguments)
    began = time.perf_counter()
    registry = open_registry(config.registry)
    name = _model(registry, config.name)
    state = registry.alias(name, "production")
    target = config.to or state.fallback
    if target is None:
        known = ", ".join(registry.versions(name)) or "none"
        raise RegistryError(f"{name}/production is {state.version}, and nothing was before it; write to=VERSION ({known})")
    if target == state.version:
        raise RegistryError(f"{name}/production is {target} already; write to=VERSION with another one")
    if target not in registry.versions(name):
        known = ", ".join(registry.versions(name)) or "none"
        raise RegistryError(f"{registry.url}: {name!r} has no version {target!r}; it has {known}")
    open_bundle(registry.version_url(name, target))
    moved = registry.set_alias(name, "production", target, config.reason, expected=state.version, action="rollback")
    change = moved.moves[-1]
    say(f"{name}: production is {target}, and was {state.version}")
    return {
        "model": name,
        "from": change.before,
        "to": change.version,
        "by": change.by,
        "reason": change.reason,
        "at": change.at,
        "seconds": {"total": round(time.perf_counter() - began, 3)},
    }


main = command(run)


def _model(registry: Registry, name: str | None) -> str:
    models = registry.models()
    if (name is None and len(models) != 1) or (name is not None and name not in models):
        raise RegistryError(f"{registry.url}: write name=NAME; models here: {', '.join(models) or 'none'}")
    return name or models[0]


if __name__ == "__main__":
    main()
