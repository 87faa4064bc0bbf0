"""What is changed in rows while they are read: reviewed labels, then a changed taxonomy. The files stay, hashes are recorded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.patch import Patch, read_patch
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.dataset.taxonomy import Taxonomy, read_taxonomy


@dataclass(frozen=True)
class Amendments:
    patch: Patch | None
    taxonomy: Taxonomy | None

    def rows(self, config: DataConfig, url: str) -> Iterator[Row]:
        """The rows of one of the data set's files; a patch is about `data.path` alone and speaks of the old labels."""
        rows, main = read_rows(config, url), url == config.path
        if self.patch and main:
            rows = self.patch.apply(rows)
        return self.taxonomy.apply(rows, whole=main) if self.taxonomy else rows

    def digests(self) -> dict[str, str]:
        """The sha256 of each file that changed something, by its key of the provenance."""
        given = {"patch_sha256": self.patch, "taxonomy_sha256": self.taxonomy}
        return {key: file.sha256 for key, file in given.items() if file}

    def report(self) -> dict[str, Any]:
        given = {"patch": self.patch, "taxonomy": self.taxonomy}
        return {key: file.report() for key, file in given.items() if file}


def open_amendments(config: DataConfig) -> Amendments:
    """Raises DataError, NotFoundError, StorageError."""
    return Amendments(
        read_patch(config.patch, config.patch_sha256) if config.patch else None,
        read_taxonomy(config.taxonomy, config.taxonomy_sha256) if config.taxonomy else None,
    )
