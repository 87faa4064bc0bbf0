"""The registry: which bundle is where, and which version an alias (production, candidate, shadow) means.

`models/<name>/versions/<version>/…` holds bundles, `models/<name>/aliases/<alias>.json` says what an alias means now and keeps
every change that ever was. Aliases move by compare-and-swap: of two writers that saw the same state, one wins and one is told.
"""

import datetime
import getpass
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from pigeonhole import storage
from pigeonhole.bundle import MANIFEST, Manifest
from pigeonhole.errors import RegistryError

Alias = Literal["production", "candidate", "shadow"]
ALIASES: tuple[Alias, ...] = get_args(Alias)


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One move of an alias; version None means that it was taken away."""

    version: str | None
    at: str
    by: str
    reason: str


class AliasState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an alias means; history ends with the change that made it so."""

    schema_version: Annotated[int, Meta(ge=1, le=1)]
    name: str
    alias: Alias
    history: tuple[Change, ...]

    @property
    def version(self) -> str | None:
        return self.history[-1].version if self.history else None

    @property
    def changed_at(self) -> str:
        return self.history[-1].at if self.history else ""


class Registry:
    """A registry at a URL (a folder or a bucket prefix)."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def models(self) -> list[str]:
        return storage.list_folders(storage.join(self.url, "models"))

    def versions(self, name: str) -> list[str]:
        """Complete versions, oldest first (a version begins with its UTC time)."""
        folder = storage.join(self.url, "models", name, "versions")
        return [version for version in storage.list_folders(folder) if storage.exists(storage.join(folder, version, MANIFEST))]

    def version_url(self, name: str, version: str) -> str:
        return storage.join(self.url, "models", name, "versions", version)

    def publish(self, folder: Path, manifest: Manifest) -> str:
        """Copy a sealed bundle in and return its URL; the manifest goes last, so that a half-copied version is never seen."""
        url = self.version_url(manifest.name, manifest.version)
        if storage.exists(storage.join(url, MANIFEST)):
            raise RegistryError(f"{url}: this version is there already; versions are never overwritten")
        for name in [*manifest.files, MANIFEST]:
            storage.write(storage.join(url, name), (folder / name).read_bytes())
        return storage.to_url(url)

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
        self, name: str, alias: Alias, version: str | None, reason: str, *, expected: str | None, by: str = ""
    ) -> AliasState:
        """Move an alias from version `expected` (None: not set) to `version`.

        Raises RegistryError when the alias means another version by now, or the version is not there.
        """
        if version is not None and not storage.exists(storage.join(self.version_url(name, version), MANIFEST)):
            known = ", ".join(self.versions(name)) or "none"
            raise RegistryError(f"{self.url}: {name!r} has no version {version!r}; it has {known}")
        state, token = self._read(name, alias)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        change = Change(version, now, by or _user(), reason)
        moved = msgspec.structs.replace(state, history=(*state.history, change))
        data = msgspec.json.format(msgspec.json.encode(moved), indent=1)
        if state.version != expected or not storage.swap(self._alias_url(name, alias), data, token):
            found = self.alias(name, alias).version
            raise RegistryError(f"{name}/{alias} is {found}, not {expected}: somebody moved it; look again, then decide again")
        return moved

    def _alias_url(self, name: str, alias: Alias) -> str:
        return storage.join(self.url, "models", name, "aliases", f"{alias}.json")

    def _read(self, name: str, alias: Alias) -> tuple[AliasState, str]:
        url = self._alias_url(name, alias)
        data, token = storage.read_versioned(url)
        if token == storage.ABSENT:
            return AliasState(1, name, alias, ()), token
        try:
            return msgspec.json.decode(data, type=AliasState), token
        except msgspec.DecodeError as error:
            raise RegistryError(f"{url}: {error}") from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid may have no name
        return "unknown"
