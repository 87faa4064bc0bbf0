"""The rollout: follows the registry's aliases, opens a new version beside the one that answers, and hands over when it is proven.

Promises: a version that is damaged, or that does not give its golden answers, never answers anybody; in production the one before
it goes on, and the new one is not tried again until the alias moves. No request can load a model: only who may write to the
registry can.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

from pigeonhole.bundle import open_bundle, release
from pigeonhole.classifier import Classifier
from pigeonhole.errors import BundleError, RegistryError, StorageError
from pigeonhole.registry import Alias, Change, Registry
from pigeonhole.serving.service import Service
from pigeonhole.serving.settle import give_back

logger = logging.getLogger(__name__)


class Seat(Protocol):
    """What a version is opened for."""

    @property
    def alias(self) -> Alias: ...

    @property
    def version(self) -> str | None: ...

    def fill(self, classifier: Classifier) -> None: ...

    def vacate(self) -> None:
        """The alias means nothing, or nothing that can be opened."""


@dataclass(frozen=True)
class Production:
    """Never empty: the one that answers goes on."""

    service: Service
    alias: Alias = "production"

    @property
    def version(self) -> str:
        return self.service.classifier.manifest.version

    def fill(self, classifier: Classifier) -> None:
        self.service.swap(classifier)

    def vacate(self) -> None:
        logger.warning("%s: %s goes on", self.service.classifier.manifest.name, self.version)


@dataclass(frozen=True)
class Canary:
    """A part of the questions goes to the candidate."""

    service: Service
    alias: Alias = "candidate"

    @property
    def version(self) -> str | None:
        return self.service.canary.manifest.version if self.service.canary else None

    def fill(self, classifier: Classifier) -> None:
        self.service.seat_canary(classifier)

    def vacate(self) -> None:
        self.service.seat_canary(None)


@dataclass(frozen=True)
class Shadowed:
    """Is asked what production is asked, and answers nobody."""

    service: Service
    alias: Alias = "shadow"

    @property
    def version(self) -> str | None:
        return self.service.shadow.version

    def fill(self, classifier: Classifier) -> None:
        self.service.seat_shadow(classifier)

    def vacate(self) -> None:
        self.service.seat_shadow(None)


class Rollout:
    """Keeps a seat of `service` at what its alias means in `registry`, for the model that the service began with."""

    def __init__(self, registry: Registry, service: Service, threads: int, seat: Seat | None = None) -> None:
        self._registry = registry
        self._seat = seat or Production(service)
        self._telemetry = service.telemetry
        self._threads = threads
        self._name = service.classifier.manifest.name
        self._settled: Change | None = None  # the latest move of the alias that needs nothing more
        self._unreachable = False

    def look(self) -> None:
        """Once. Raises nothing that the registry or a bundle can cause."""
        try:
            self._follow()
        except (StorageError, RegistryError) as error:  # nothing is wrong with the version: the next look tries again
            self._count("unreachable")
            if not self._unreachable:
                logger.warning("%s: the rollout cannot read the registry for now: %s", self._name, error)
            self._unreachable = True
        else:
            self._unreachable = False

    def _follow(self) -> None:
        alias = self._seat.alias
        moves = self._registry.alias(self._name, alias).moves
        if not moves:
            return
        change = moves[-1]
        version = change.version
        behind = self._telemetry.behind.labels(alias)
        if change == self._settled:
            pass
        elif version is None:
            logger.warning("%s: no version is in %s any more", self._name, alias)
            self._seat.vacate()
        elif version != self._seat.version:
            behind.set(1)
            self._replace(version)
        behind.set(version not in (None, self._seat.version))  # each time: a candidate that fails is sent away by the service
        self._settled = change

    def _replace(self, version: str) -> None:
        seat = self._seat
        before = seat.version
        try:
            classifier = self._open(version)
        except StorageError:
            raise
        except BaseException as error:  # noqa: BLE001  whatever is wrong with the new one, a panic too, the old one answers
            self._count("refused")
            logger.warning("%s: version %s is refused for %s: %s", self._name, version, seat.alias, error)
            seat.vacate()
        else:
            seat.fill(classifier)
            self._count("swapped")
            logger.warning("%s: version %s is in %s now, after %s", self._name, version, seat.alias, before or "none")
            give_back()

    def _count(self, outcome: str) -> None:
        self._telemetry.rollouts.labels(self._seat.alias, outcome).inc()

    def _open(self, version: str) -> Classifier:
        """Its golden answers have warmed it."""
        bundle = open_bundle(self._registry.version_url(self._name, version), "served")
        try:
            found = (bundle.manifest.name, bundle.manifest.version)
            if found != (self._name, version):
                raise BundleError(f"{bundle.url}: the manifest says {found[0]} {found[1]}; a version lies where it was published")
            return Classifier.open(bundle, threads=self._threads)
        finally:
            release(bundle)
