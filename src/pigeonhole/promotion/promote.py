"""`uv run promote candidate=VERSION|URL`: through the gate, then the production alias moves by compare-and-swap.

Exit 0: the candidate is production now. Exit 4: HOLD or REJECT, nothing moved; the verdict is on stdout all the same. Every
verdict is in the registry's history, with who asked and why.
"""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from pigeonhole import storage
from pigeonhole.bundle import Bundle, open_bundle
from pigeonhole.command import command, say
from pigeonhole.configuration import compose
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import read_out_of_scope
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import ConfigError, GateError, RegistryError
from pigeonhole.evaluation.behaviour import minimum_of
from pigeonhole.evaluation.labelled import (
    Labelled,
    RowsConfig,
    count_learned,
    label_ids,
    learned_note,
    own_data,
    own_patterns,
    read_labelled,
    read_own_split,
    was_trained_on,
)
from pigeonhole.evaluation.slices import text_masks
from pigeonhole.metrics import score_metrics
from pigeonhole.options import setting
from pigeonhole.promotion.gate import Limits, Verdict, decide
from pigeonhole.promotion.measure import Probes, measure
from pigeonhole.registry import Move, Registry


@dataclass
class ProbesConfig:
    """Texts that both versions are asked besides the frozen rows."""

    minimum: str | None = setting(
        None, "labelled texts that every version has to get right; unset: those of tickets, for its labels"
    )
    out_of_scope: str | None = setting(None, "texts that belong to no label; unset: those that the candidate was measured on")


@dataclass
class PromoteConfig:
    """The gate: a version that passes becomes production; exit code 4 where it does not.

    uv run promote candidate=VERSION
    """

    candidate: str | None = setting(None, "version in the registry, or URL of a bundle (which is published if it passes); needed")
    name: str | None = setting(None, "the model's name in the registry; unset: the candidate's")
    registry: str = setting("${oc.env:PIGEONHOLE_REGISTRY,registry}", "URL of the registry")
    data: RowsConfig = field(default_factory=RowsConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    gate: Limits = field(default_factory=Limits)
    force: bool = setting(False, "move the alias whatever the gate says; the history keeps that it was forced")
    threads: int = setting(0, "threads of the models; 0: one a core", ge=0, le=1024)
    seed: int = setting(0, "seed of the intervals", ge=0, lt=2**32)


def run(arguments: list[str]) -> dict[str, Any]:
    """`model=NAME` is short for `name=NAME`."""
    config = compose(PromoteConfig, "promote", [_in_full(argument) for argument in arguments])
    started = time.perf_counter()
    registry = Registry(config.registry)
    candidate = open_bundle(_find(registry, config.candidate, config.name))
    name, version = config.name or candidate.manifest.name, candidate.manifest.version
    published = _is_published(registry, name, candidate)
    before = registry.alias(name, "production").version
    if published and before == version:
        say(f"{name} {version} is production already")
        return _settled(name, version)
    storage.require_writable("registry", registry.url)  # before the long work; a refusal is written down, too
    production = open_bundle(registry.version_url(name, before)) if before else None
    rows = _rows(config.data, candidate)
    bundles = [bundle for bundle in (candidate, production) if bundle is not None]
    answers, *others = measure(bundles, rows, choose_probes(config.probes, candidate), config.threads, config.seed)
    opponent = others[0] if others else None
    masks = text_masks(rows.texts, own_patterns(candidate))
    verdict = decide(rows.labels, answers, opponent, config.gate, config.seed, masks)
    result = {
        **_verdict(verdict, name, candidate, production, rows),
        "test": score_metrics(
            label_ids(rows, answers.labels), answers.probabilities, answers.labels, config.seed, answers.thresholds
        ),
        "moved": verdict.decision == "PROMOTE" or config.force,
        "forced": verdict.decision != "PROMOTE" and config.force,
        "seconds": {"total": round(time.perf_counter() - started, 3)},
    }
    _say(result)
    if not result["moved"]:
        registry.note_refusal(name, "production", version, _reason(result), "hold" if verdict.decision == "HOLD" else "reject")
        raise GateError(f"{verdict.decision}: {'; '.join(verdict.reasons)}; force=true moves the alias all the same", result)
    if not published:
        registry.publish(candidate.folder, candidate.manifest)
    action: Move = "force" if result["forced"] else "promote"
    registry.set_alias(name, "production", version, _reason(result), expected=before, action=action)
    return result


main = command(run)


def _in_full(argument: str) -> str:
    """To Hydra, `model=` would choose a file of the folder configs/model."""
    return f"name={argument.removeprefix('model=')}" if argument.startswith("model=") else argument


def _find(registry: Registry, candidate: str | None, name: str | None) -> str:
    """The URL of a version of the registry, or the one that was given."""
    if candidate is None:
        raise ConfigError("candidate: a value is missing, write candidate=VERSION or candidate=URL")
    if "/" in candidate:
        return storage.to_url(candidate)
    versions = {model: registry.versions(model) for model in ([name] if name else registry.models())}
    owners = [model for model, found in versions.items() if candidate in found]
    if not owners:
        latest = [f"{model} {version}" for model, found in versions.items() for version in found[-3:]]
        raise RegistryError(f"{registry.url}: has no version {candidate!r}; the latest are {', '.join(latest) or 'none'}")
    if len(owners) > 1:
        raise RegistryError(f"{registry.url}: version {candidate!r} is there for {', '.join(owners)}; write name=NAME")
    return storage.to_url(registry.version_url(owners[0], candidate))


def _is_published(registry: Registry, name: str, candidate: Bundle) -> bool:
    """Whether the registry has this very bundle. Raises RegistryError where it has another one by that name."""
    manifest = candidate.manifest
    if manifest.name != name:
        raise RegistryError(f"{candidate.url} is a version of {manifest.name!r}; it cannot become one of name={name}")
    if manifest.version not in registry.versions(name):
        return False
    url = storage.to_url(registry.version_url(name, manifest.version))
    if candidate.url == url:  # opened, and verified, already
        return True
    there = open_bundle(url)
    if there.manifest.seal != manifest.seal:
        raise RegistryError(
            f"{registry.url}: {name} {manifest.version} is there already, and is another bundle than {candidate.url}"
        )
    return True


def _settled(name: str, version: str) -> dict[str, Any]:
    """What a command that is run twice answers the second time."""
    return {
        "decision": "PROMOTE",
        "reasons": ["is production already"],
        "checks": [],
        "model": name,
        "candidate": version,
        "production": version,
        "moved": False,
        "forced": False,
    }


def _rows(data: RowsConfig, candidate: Bundle) -> Labelled:
    """The frozen set. Raises ConfigError for the rows that the candidate has learned by heart."""
    if data.path is None:
        return read_own_split(candidate)[1]
    rows = read_labelled(data.path, data, candidate.manifest.task)
    if was_trained_on(candidate, rows):
        raise ConfigError(f"data.path={data.path}: the candidate was trained on this file; leave it out to use its test split")
    label_ids(rows, candidate.manifest.labels)
    return rows


def choose_probes(data: ProbesConfig, candidate: Bundle) -> Probes:
    """The files that were named; else the texts that belong to the candidate's data, and that nothing was fitted on."""
    task = candidate.manifest.task
    of_tickets = minimum_of(candidate.manifest.labels) if task == "single_label" else []
    minimum = list(read_rows(DataConfig(path=data.minimum, task=task))) if data.minimum else of_tickets
    if data.out_of_scope:
        return Probes(minimum, [row.text for row in read_rows(DataConfig(path=data.out_of_scope))])
    recorded = own_data(candidate)
    out_of_scope = read_out_of_scope(recorded).test if recorded else []
    return Probes(minimum, out_of_scope or (read_out_of_scope(DataConfig()).test if of_tickets else []))


def _verdict(verdict: Verdict, name: str, candidate: Bundle, production: Bundle | None, rows: Labelled) -> dict[str, Any]:
    return {
        "decision": verdict.decision,
        "reasons": verdict.reasons,
        "checks": [asdict(check) for check in verdict.checks],
        "model": name,
        "candidate": candidate.manifest.version,
        "production": production.manifest.version if production else None,
        "data": rows.source,
        "notes": _notes(candidate, production, rows),
    }


def _notes(candidate: Bundle, production: Bundle | None, rows: Labelled) -> list[str]:
    favoured = learned_note("the candidate", candidate, rows)
    if production is None:
        return [*favoured, "there is no production version yet: compared with always giving the most frequent label"]
    origins = [bundle.manifest.provenance.get("data_sha256") for bundle in (candidate, production)]
    if origins[0] != origins[1] and count_learned(production, rows) is None:
        return [*favoured, "production was trained on other data and may know some of these rows: that favours it"]
    return [*favoured, *learned_note("production", production, rows)]


def _reason(result: dict[str, Any]) -> str:
    """The line that the registry's history keeps."""
    said = f"{'forced over ' if result['forced'] else ''}{result['decision']}: {'; '.join(result['reasons'])}"
    return f"{said} ({result['test']['n']} rows of {result['data']})"


def _say(result: dict[str, Any]) -> None:
    say(f"{result['model']} {result['candidate']} against {result['production'] or 'no production version'}, {result['data']}")
    for check in result["checks"]:
        say(f"  {check['outcome']:8} {check['name']:12} {check['reason']}")
    for note in result["notes"]:
        say(f"  note: {note}")
    say(f"{result['decision']}{' (forced)' if result['forced'] else ''}")


if __name__ == "__main__":
    main()
