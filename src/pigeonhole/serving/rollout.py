"""The rollout: follows the production alias, opens a new version beside the one that answers, and hands over when it is proven.

Promises: a version that is damaged, or that does not give its golden answers, never answers anybody; the one before it goes on,
and the new one is not tried again until the alias moves. No request can load a model: only who may write to the registry can.
"""

import logging
import shutil

from pigeonhole import storage
from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.errors import BundleError, StorageError
from pigeonhole.registry import Change, Registry
from pigeonhole.serving.service import Service

logger = logging.getLogger(__name__)


class Rollout:
    """Keeps `service` at what production means in `registry`, for the model that it began with."""

    def __init__(self, registry: Registry, service: Service, threads: int) -> None:
        self._registry = registry
        self._service = service
        self._threads = threads
        self._name = service.classifier.manifest.name
        self._settled: Change | None = None  # the latest move of the alias that needs nothing more
        self._unreachable = False

    def look(self) -> None:
        """Once. Raises nothing that the registry or a bundle can cause."""
        try:
            self._follow()
        except StorageError as error:  # nothing is wrong with the version: the next look tries again
            self._service.telemetry.rollouts.labels("unreachable").inc()
            if not self._unreachable:
                logger.warning("%s: the rollout cannot read the registry for now: %s", self._name, error)
            self._unreachable = True
        else:
            self._unreachable = False

    def _follow(self) -> None:
        moves = self._registry.alias(self._name, "production").moves
        if not moves or moves[-1] == self._settled:
            return
        change = moves[-1]
        version = change.version
        if version is None:
            logger.warning("%s: nothing is in production any more; %s goes on", self._name, self._serving)
        elif version != self._serving:
            self._service.telemetry.behind.set(1)
            self._replace(version)
        self._service.telemetry.behind.set(version not in (None, self._serving))
        self._settled = change

    @property
    def _serving(self) -> str:
        return self._service.classifier.manifest.version

    def _replace(self, version: str) -> None:
        before = self._serving
        try:
            classifier = self._open(version)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001  whatever is wrong with the new one, MemoryError too, the old one answers
            self._service.telemetry.rollouts.labels("refused").inc()
            logger.warning("%s: version %s is refused, %s goes on: %s", self._name, version, before, error)
        else:
            self._service.swap(classifier)
            self._service.telemetry.rollouts.labels("swapped").inc()
            logger.warning("%s: version %s answers now, after %s", self._name, version, before)

    def _open(self, version: str) -> Classifier:
        """Its golden answers have warmed it."""
        bundle = open_bundle(self._registry.version_url(self._name, version))
        try:
            found = (bundle.manifest.name, bundle.manifest.version)
            if found != (self._name, version):
                raise BundleError(f"{bundle.url}: the manifest says {found[0]} {found[1]}; a version lies where it was published")
            return Classifier.open(bundle, threads=self._threads)
        finally:
            if storage.local_path(bundle.url) is None:  # a copy, which the opened model does not need
                shutil.rmtree(bundle.folder, ignore_errors=True)
