"""A checkpoint's way from a machine that may be taken away to the one that comes after it, by way of a bucket.

Promises: what is fetched is what was saved, file by file; what goes on from it ends with the weights of an undisturbed run.
Knows nothing of what is in the files.
"""

import contextlib
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pigeonhole import storage
from pigeonhole.command import say
from pigeonhole.errors import StorageError

EVERY_S = 20.0  # a spot machine is told 30 s before it goes; the run saves twice a minute


class Carrier:
    """Keeps `url` a copy of the files `names` of `folder`, while it is entered and once more at the end.

    `names` in the order in which they are sent: the one that speaks of the others last, so no copy speaks of what is not there.
    """

    def __init__(self, folder: Path, url: str, names: Sequence[str], every_s: float = EVERY_S) -> None:
        self._folder, self._url, self._names, self._every_s = folder, url, names, every_s
        self._sent: dict[str, tuple[int, int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="carry", daemon=True)

    def fetch(self) -> bool:
        """Bring back what an earlier machine left; False where there is nothing. Raises StorageError."""
        there = [name for name in self._names if storage.exists(storage.join(self._url, name))]
        for name in there:
            path = self._folder / name
            aside = path.with_suffix(".tmp")
            storage.download(storage.join(self._url, name), aside)
            aside.replace(path)
            self._sent[name] = _stamp(path.stat())
        return bool(there)

    def send(self) -> None:
        """The last file is opened first: the run may write all of them anew while others are on their way. Raises StorageError.

        They are mapped and not read: what the run has renamed another file over stays as it was, and none has to fit into memory.
        """
        changed = {}
        for name in reversed(self._names):
            with contextlib.suppress(FileNotFoundError), (self._folder / name).open("rb") as stream:
                if self._sent.get(name) != (stamp := _stamp(os.fstat(stream.fileno()))):
                    changed[name] = stamp, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        for name, (stamp, data) in reversed(changed.items()):
            storage.write(storage.join(self._url, name), data)
            self._sent[name] = stamp

    def __enter__(self) -> "Carrier":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._try_to_send()

    def _carry(self) -> None:
        while not self._ended.wait(self._every_s):
            self._try_to_send()

    def _try_to_send(self) -> None:
        """The run itself needs no bucket: one that is done stays done, one that failed says why."""
        try:
            self.send()
        except StorageError as error:
            say(f"the checkpoint was not carried: {error}")


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_mtime_ns, found.st_size
