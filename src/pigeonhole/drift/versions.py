"""What the page asks of the registry: the versions of the watched model, who moved which alias and why, and their held-out rows.

A sealed version never changes, so what was read of one is kept; aliases are read each time. Without a registry
(PIGEONHOLE_BUNDLE) there is the one version of that bundle.
"""

import functools
from dataclasses import dataclass
from typing import Any

import msgspec

from pigeonhole.bundle import CARD, Manifest, read_file, read_manifest
from pigeonhole.drift.held_out import Cell, HeldOut, compare, pick, read_held_out, summary
from pigeonhole.drift.settings import Settings
from pigeonhole.drift.window import promoted_last
from pigeonhole.errors import BundleError, ConfigError, NotFoundError
from pigeonhole.registry import ALIASES, Registry

KEPT = 16  # versions whose rows stay in memory: a megabyte each at most


@dataclass(frozen=True)
class Version:
    url: str
    manifest: Manifest
    card: str
    rows: HeldOut | None


class Versions:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = None if settings.bundle else Registry(settings.registry)
        self._read = functools.lru_cache(KEPT)(self._read_once)

    def listed(self) -> dict[str, Any]:
        """Versions newest first, what each alias means, and all that was ever decided, latest first.

        `unreadable`: versions whose manifest is not what was sealed, each with what is wrong.
        """
        if self._registry is None:
            manifest = read_manifest(self._url(""))
            return {"model": manifest.name, "versions": [_headline(manifest, [])], "unreadable": {}, "aliases": {}, "history": []}
        name, registry = self._name(), self._registry
        states = {alias: registry.alias(name, alias) for alias in ALIASES}
        meaning = {alias: state.version for alias, state in states.items() if state.version is not None}
        versions, unreadable = [], {}
        for version in reversed(registry.versions(name)):
            try:
                manifest = read_manifest(registry.version_url(name, version))
            except BundleError as error:
                unreadable[version] = str(error)
                continue
            versions.append(_headline(manifest, [alias for alias, meant in meaning.items() if meant == version]))
        history = [{"alias": alias, **msgspec.to_builtins(change)} for alias in ALIASES for change in states[alias].history]
        history.sort(key=lambda change: change["at"], reverse=True)
        return {"model": name, "versions": versions, "unreadable": unreadable, "aliases": meaning, "history": history}

    def about(self, version: str) -> dict[str, Any]:
        """Raises NotFoundError, BundleError."""
        found = self._version(version)
        kept = ("name", "version", "created_at", "task", "labels", "max_length", "temperature", "thresholds", "served", "parity")
        known = msgspec.to_builtins(found.manifest)
        return {
            **{key: known[key] for key in kept},
            "metrics": known["metrics"],
            "provenance": {key: value for key, value in known["provenance"].items() if key != "config"},
            "card": found.card,
            "held_out": summary(found.rows) if found.rows else None,
        }

    def rows(self, version: str, true_label: str | None, label: str | None, cell: Cell | None, most: int) -> dict[str, Any]:
        return pick(self._rows(version), true_label, label, cell, most)

    def compared(self, before: str, after: str, label: str | None, most: int) -> dict[str, Any]:
        return {"before": before, "after": after, **compare(self._rows(before), self._rows(after), label, most)}

    def _rows(self, version: str) -> HeldOut:
        rows = self._version(version).rows
        if rows is None:
            raise ConfigError(f"version {version} was sealed without held-out rows")
        return rows

    def _version(self, version: str) -> Version:
        if self._registry is not None and version not in self._registry.versions(self._name()):
            raise NotFoundError(f"{version[:100]}: no such version")
        return self._read(self._url(version), version)

    def _url(self, version: str) -> str:
        if self._settings.bundle:
            return self._settings.bundle
        assert self._registry is not None
        return self._registry.version_url(self._name(), version)

    def _name(self) -> str:
        assert self._registry is not None
        return self._settings.model or promoted_last(self._registry)

    def _read_once(self, url: str, version: str) -> Version:
        manifest = read_manifest(url)
        if manifest.version != version:
            raise NotFoundError(f"{version[:100]}: no such version")
        texts = self._registry.test_texts(manifest.name, version) if self._registry else None
        card = read_file(url, manifest, CARD).decode(errors="replace") if CARD in manifest.files else ""
        return Version(url, manifest, card, read_held_out(url, manifest, texts))


def _headline(manifest: Manifest, aliases: list[str]) -> dict[str, Any]:
    test = manifest.metrics.get("test", {})
    return {
        "version": manifest.version,
        "created_at": manifest.created_at,
        "labels": len(manifest.labels),
        "accuracy": test.get("accuracy"),
        "macro_f1": test.get("macro_f1"),
        "n": test.get("n"),
        "aliases": aliases,
    }
