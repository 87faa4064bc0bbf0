"""The registry: which bundle is where, and which version an alias (production, candidate, shadow) means.

`models/<name>/versions/<version>/…` holds bundles, `models/<name>/aliases/<alias>.json` says what an alias means now and keeps
every change that ever was, `models/<name>/test-texts/<version>.json` holds the texts that a version was tested on, where they may
be kept: not in the bundle, so that what serves a model holds no text of anybody. Aliases move by compare-and-swap: of two writers
that saw the same state, one wins and one is told.
"""

import datetime
import getpass
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from pigeonhole import storage
from pigeonhole.bundle import MANIFEST, Manifest
from pigeonhole.errors import NOT_AS_TYPED, NotFoundError, RegistryError

Alias = Literal["production", "candidate", "shadow"]
ALIASES: tuple[Alias, ...] = get_args(Alias)
Move = Literal["set", "promote", "force", "rollback"]
Refusal = Literal["hold", "reject"]
ATTEMPTS = 20  # of writing to an alias while others write to it: a refusal that is noted leaves it where it was


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One move of an alias from `before` to `version` (None: it means no version), or a refusal that left it where it was."""

    version: str | None
    at: str
    by: str
    reason: str
    before: str | None = None
    action: Move | Refusal = "set"
    refused: str | None = None  # the version that the gate held or rejected


class AliasState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an alias means; history ends with the change that made it so."""

    schema_version: Annotated[int, Meta(ge=1, le=1)]
    name: str
    alias: Alias
    history: tuple[Change, ...]

    @property
    def moves(self) -> tuple[Change, ...]:
        return tuple(change for change in self.history if change.refused is None)

    @property
    def version(self) -> str | None:
        return self.moves[-1].version if self.moves else None

    @property
    def changed_at(self) -> str:
        return self.moves[-1].at if self.moves else ""

    @property
    def fallback(self) -> str | None:
        """What a rollback returns to: the version before the present one; a version that was rolled back is none."""
        kept: list[str] = []
        for change in self.moves:
            if change.action == "rollback" and change.version in kept:
                while kept[-1] != change.version:
                    kept.pop()
            elif change.action == "rollback" and kept[-1:] == [change.before]:
                kept.pop()
            if change.version is not None and change.version not in kept[-1:]:
                kept.append(change.version)
        earlier = kept if self.version is None else kept[:-1]
        return earlier[-1] if earlier else None


class Registry:
    """A registry at a URL (a folder or a bucket prefix)."""

    def __init__(self, url: str) -> None:
        self.url = storage.join(url)

    def models(self) -> list[str]:
        return storage.list_folders(storage.join(self.url, "models"))

    def in_production(self) -> list[str]:
        """Models with a version in production, the one promoted last first."""
        states = [self.alias(name, "production") for name in self.models()]
        promoted = sorted(((state.changed_at, state.name) for state in states if state.version is not None), reverse=True)
        return [name for _, name in promoted]

    def versions(self, name: str) -> list[str]:
        """Complete versions, oldest first (a version begins with its UTC time)."""
        folder = storage.join(self.url, "models", name, "versions")
        return [version for version in storage.list_folders(folder) if storage.exists(storage.join(folder, version, MANIFEST))]

    def version_url(self, name: str, version: str) -> str:
        return storage.join(self.url, "models", name, "versions", version)

    def has(self, folder: Path, manifest: Manifest) -> bool:
        """Whether this very bundle is among the versions, complete."""
        published = storage.join(self.version_url(manifest.name, manifest.version), MANIFEST)
        return storage.exists(published) and storage.read(published) == (folder / MANIFEST).read_bytes()

    def publish(self, folder: Path, manifest: Manifest) -> str:
        """Copy a sealed bundle in and return its URL; the manifest goes last, so that a half-copied version is never seen."""
        url = self.version_url(manifest.name, manifest.version)
        if storage.exists(storage.join(url, MANIFEST)):
            raise RegistryError(f"{url}: this version is there already; versions are never overwritten")
        for name in [*manifest.files, MANIFEST]:
            storage.write(storage.join(url, name), (folder / name).read_bytes())
        return storage.to_url(url)

    def keep_test_texts(self, name: str, version: str, texts: Sequence[str]) -> None:
        """In the order of the version's reference.parquet."""
        storage.write(self._test_texts_url(name, version), msgspec.json.encode(texts))

    def test_texts(self, name: str, version: str) -> list[str] | None:
        """None where they were not kept."""
        try:
            return msgspec.json.decode(storage.read(self._test_texts_url(name, version)), type=list[str])
        except NotFoundError:
            return None

    def alias(self, name: str, alias: Alias) -> AliasState:
        """The state of an alias; its version is None where it was never set."""
        return self._read(name, alias)[0]

    def resolve(self, name: str, alias: Alias) -> str:
        """The URL of the version that an alias means. Raises RegistryError where it means none."""
        version = self.alias(name, alias).version
        if version is None:
            known = ", ".join(self.models()) or "none"
            raise RegistryError(f"{self.url}: model {name!r} has no {alias} version; models here: {known}")
        return self.version_url(name, version)

    def set_alias(
        self,
        name: str,
        alias: Alias,
        version: str | None,
        reason: str,
        *,
        expected: str | None,
        by: str = "",
        action: Move = "set",
    ) -> AliasState:
        """Move an alias from version `expected` (None: not set) to `version`.

        Raises RegistryError when the alias means another version by now, or the version is not there.
        """
        if version is not None and not storage.exists(storage.join(self.version_url(name, version), MANIFEST)):
            known = ", ".join(self.versions(name)) or "none"
            raise RegistryError(f"{self.url}: {name!r} has no version {version!r}; it has {known}")
        for _ in range(ATTEMPTS):
            state, token = self._read(name, alias)
            if state.version != expected:
                raise RegistryError(
                    f"{name}/{alias} is {state.version}, not {expected}: somebody moved it; look again, then decide again"
                )
            moved = _with(state, Change(version, _now(), by or _user(), reason, state.version, action))
            if self._swap(moved, token):
                return moved
        raise _never_still(name, alias)

    def note_refusal(self, name: str, alias: Alias, refused: str, reason: str, action: Refusal, by: str = "") -> AliasState:
        """Write into an alias's history that `refused` was turned away; what the alias means stays as it is."""
        for _ in range(ATTEMPTS):
            state, token = self._read(name, alias)
            noted = _with(state, Change(state.version, _now(), by or _user(), reason, state.version, action, refused))
            if self._swap(noted, token):
                return noted
        raise _never_still(name, alias)

    def _swap(self, state: AliasState, token: str) -> bool:
        data = msgspec.json.format(msgspec.json.encode(state), indent=1)
        return storage.swap(self._alias_url(state.name, state.alias), data, token)

    def _alias_url(self, name: str, alias: Alias) -> str:
        return storage.join(self.url, "models", name, "aliases", f"{alias}.json")

    def _test_texts_url(self, name: str, version: str) -> str:
        return storage.join(self.url, "models", name, "test-texts", f"{version}.json")

    def _read(self, name: str, alias: Alias) -> tuple[AliasState, str]:
        url = self._alias_url(name, alias)
        data, token = storage.read_versioned(url)
        if token == storage.ABSENT:
            return AliasState(1, name, alias, ()), token
        try:
            return msgspec.json.decode(data, type=AliasState), token
        except NOT_AS_TYPED as error:
            raise RegistryError(f"{url}: {error}") from error


def open_registry(url: str | None = None) -> Registry:
    """The one that is named, or the environment's."""
    return Registry(url or os.environ.get("PIGEONHOLE_REGISTRY") or "registry")


def _with(state: AliasState, change: Change) -> AliasState:
    return msgspec.structs.replace(state, history=(*state.history, change))


def _never_still(name: str, alias: Alias) -> RegistryError:
    return RegistryError(f"{name}/{alias}: others write to it without a pause; try again")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid may have no name
        return "unknown"
