"""What each level promises to survive, and that the level below it does not."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from tests.conftest import wait_until
from tests.prediction_log.conftest import ids_in

from pigeonhole import storage
from pigeonhole.errors import LogError, StorageError
from pigeonhole.prediction_log import Durability, LogWriter, Record, WhenFull, writer
from pigeonhole.prediction_log.record import encode_line

MakeRecord = Callable[..., Record]
NEVER_S = 3600.0

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL, not Windows")


WRITE = """
    import sys
    from datetime import UTC, datetime
    from pigeonhole.prediction_log import Features, LogWriter, Record, new_id

    folder, durability, interval_s, records = sys.argv[1:]
    log = LogWriter(folder, durability=durability, interval_s=float(interval_s), segment_records=10**6)
    for _ in range(int(records)):
        features = Features(n_chars=1, n_words=1, n_tokens=3, unknown_tokens=0, truncated=False, max_logit=1.0)
        record = Record(prediction_id=new_id(), at=datetime.now(UTC), request_id="r", model="m", version="v", text=None,
                        text_policy="none", features=features, label="a", score=0.5, probabilities={"a": 0.5}, decision="accept",
                        latency_ms=1.0)
        log.append([record])
        print(record.prediction_id, flush=True)
    sys.stdin.readline()
    log.close()
"""


def killed(folder: Path, durability: Durability, interval_s: float, may_die: Callable[[], bool] = lambda: True) -> list[str]:
    """The ids that a process acknowledged before SIGKILL took it, as soon as it might."""
    command = [sys.executable, "-c", textwrap.dedent(WRITE), str(folder), durability, str(interval_s), "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(100)]
        wait_until(may_die)
        process.send_signal(signal.SIGKILL)
    return acknowledged


@needs_signals
def test_kill_9_takes_what_level_none_has_not_shipped_and_nothing_of_level_process(tmp_path: Path) -> None:
    killed(tmp_path / "none", "none", NEVER_S)
    assert ids_in(tmp_path / "none") == []
    assert sorted(killed(tmp_path / "process", "process", NEVER_S)) == sorted(ids_in(tmp_path / "process"))


@needs_signals
def test_level_none_loses_no_more_than_came_since_the_last_shipping(tmp_path: Path) -> None:
    acknowledged = killed(tmp_path, "none", interval_s=0.05, may_die=lambda: len(ids_in(tmp_path)) == 100)
    assert sorted(ids_in(tmp_path)) == sorted(acknowledged)


def test_level_none_loses_nothing_where_the_end_is_orderly(tmp_path: Path, make_record: MakeRecord) -> None:
    with LogWriter(str(tmp_path), durability="none", interval_s=NEVER_S) as log:
        records = [make_record() for _ in range(5)]
        log.append(records)
        assert ids_in(tmp_path) == []
    assert sorted(ids_in(tmp_path)) == sorted(record.prediction_id for record in records)


def test_what_level_none_cannot_write_down_is_counted(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with LogWriter(str(tmp_path), durability="none", interval_s=NEVER_S) as log:
        log.append([make_record(), make_record()])
        with monkeypatch.context() as full:
            full.setattr(os, "write", refuse)
            log.flush()
        assert log.dropped == 2


def test_level_none_holds_no_more_than_a_segment_or_an_interval_in_memory_while_the_store_hangs(
    held_store: threading.Event, tmp_path: Path, make_record: MakeRecord
) -> None:
    with LogWriter(str(tmp_path), durability="none", interval_s=NEVER_S, segment_records=3) as log:
        log.append([make_record()])
        assert ids_in(tmp_path) == []
        log.append([make_record(), make_record()])
        assert len(ids_in(tmp_path)) == 3
        held_store.set()
    with LogWriter(str(tmp_path), durability="none", interval_s=0.01, segment_records=1000) as log:
        held_store.clear()
        log.append([make_record()])
        time.sleep(0.1)  # the shipper hangs now
        log.append([make_record()])
        assert len(ids_in(tmp_path)) == 5
        held_store.set()


class Disk:
    """A disk with a cache: after a power cut a file has what was synced, and nothing behind it."""

    def __init__(self) -> None:
        self._synced: dict[int, int] = {}
        self._fdatasync = getattr(os, "fdatasync", os.fsync)

    def fdatasync(self, handle: int) -> None:
        self._fdatasync(handle)
        found = os.fstat(handle)
        self._synced[found.st_ino] = found.st_size

    def cut_power(self, folder: Path) -> None:
        for path in folder.rglob("*.jsonl"):
            os.truncate(path, self._synced.get(path.stat().st_ino, 0))


@pytest.mark.skipif(sys.platform == "win32", reason="needs inode numbers, not Windows")
@pytest.mark.parametrize(("durability", "kept"), [("process", 0), ("host", 6)])
def test_a_power_cut_takes_the_spool_of_level_process_and_nothing_of_level_host(
    durability: Durability, kept: int, tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on a real disk: `uv run chaos promise=power_cut`."""
    disk = Disk()
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync, raising=False)
    with LogWriter(str(tmp_path), durability=durability, interval_s=NEVER_S) as log:
        for _ in range(3):
            log.append([make_record(), make_record()])
        disk.cut_power(tmp_path)
        assert len(ids_in(tmp_path)) == kept


@pytest.mark.parametrize(("durability", "kept"), [("host", 0), ("remote", 3)])
def test_the_loss_of_the_hosts_disk_takes_the_spool_of_level_host_and_nothing_of_level_remote(
    durability: Durability, kept: int, tmp_path: Path, make_record: MakeRecord
) -> None:
    log = LogWriter(str(tmp_path), durability=durability, interval_s=NEVER_S)
    for _ in range(3):
        log.append([make_record()])
    shutil.rmtree(tmp_path / "spool")
    assert len(ids_in(tmp_path)) == kept
    log.close()


@pytest.fixture
def broken_store(tmp_path: Path) -> Path:
    """A file where the folder of the objects should be; the store works when it is gone."""
    store = tmp_path / "predictions"
    store.write_text("in the way")
    return store


@pytest.fixture
def held_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A store that acknowledges nothing before the event is set."""
    opened, create = threading.Event(), storage.create

    def wait(url: str, data: bytes) -> bool:
        opened.wait(30)
        return create(url, data)

    monkeypatch.setattr(storage, "create", wait)
    yield opened
    opened.set()


def test_level_remote_returns_when_the_store_has_acknowledged_and_not_before(
    held_store: threading.Event, tmp_path: Path, make_record: MakeRecord
) -> None:
    with LogWriter(str(tmp_path), durability="remote", interval_s=NEVER_S) as log:
        waiting = [threading.Thread(target=log.append, args=([make_record()],)) for _ in range(8)]
        for thread in waiting:
            thread.start()
        waiting[0].join(0.2)
        assert all(thread.is_alive() for thread in waiting)
        held_store.set()
        for thread in waiting:
            thread.join(10)
        assert not any(thread.is_alive() for thread in waiting)
        assert log.backlog().size_bytes == 0
    assert len(ids_in(tmp_path)) == 8
    assert len(storage.list_files(str(tmp_path / "predictions"))) < 8, "who waits together shares an upload"


@pytest.mark.usefixtures("held_store")
def test_level_remote_refuses_what_a_stuck_store_does_not_acknowledge_in_time(tmp_path: Path, make_record: MakeRecord) -> None:
    with (
        LogWriter(str(tmp_path), durability="remote", patience_s=0.1) as log,
        pytest.raises(LogError, match="the store did not acknowledge"),
    ):
        log.append([make_record()])


def test_level_remote_refuses_at_once_while_the_store_fails_and_accepts_again_after_that(
    tmp_path: Path, make_record: MakeRecord, broken_store: Path
) -> None:
    with LogWriter(str(tmp_path), durability="remote", interval_s=0.01, patience_s=30) as log:
        began = time.monotonic()
        with pytest.raises(LogError, match="the store did not acknowledge"):
            log.append([make_record()])
        assert time.monotonic() - began < 20  # with the first failure, and not when its patience is over
        refused = make_record()
        with pytest.raises(LogError, match=r"has failed \d+ times running"):
            log.append([refused])
        broken_store.unlink()
        wait_until(lambda: not log.backlog().failures)
        log.append([make_record()])
    assert len(ids_in(tmp_path)) == 2
    assert refused.prediction_id not in ids_in(tmp_path)


def open_small(folder: Path, durability: Durability, when_full: WhenFull) -> LogWriter:
    return LogWriter(str(folder), durability=durability, interval_s=0.02, max_spool_bytes=2000, when_full=when_full)


@pytest.mark.parametrize("durability", ["none", "process"])
def test_a_full_spool_refuses_records_and_takes_them_again_when_it_is_shipped(
    durability: Durability, tmp_path: Path, make_record: MakeRecord, broken_store: Path
) -> None:
    kept: list[Record] = []

    def fill(log: LogWriter) -> None:
        while len(kept) < 1000:
            kept.append(make_record())
            log.append(kept[-1:])
            time.sleep(0.01)  # until `none` is written down

    with open_small(tmp_path, durability, "shed") as log:
        with pytest.raises(LogError, match="the spool is full, 2000 bytes are allowed"):
            fill(log)
        broken_store.unlink()
        wait_until(lambda: not log.backlog().size_bytes)
        kept[-1] = make_record()
        log.append(kept[-1:])
    assert sorted(ids_in(tmp_path)) == sorted(record.prediction_id for record in kept)
    assert log.dropped == 0


@pytest.mark.parametrize("durability", ["none", "process"])
def test_a_full_spool_may_be_told_to_drop_records_and_counts_them(
    durability: Durability, tmp_path: Path, make_record: MakeRecord, broken_store: Path
) -> None:
    appended = 0
    with open_small(tmp_path, durability, "drop") as log:
        while log.dropped < 3 and appended < 1000:
            log.append([make_record()])
            appended += 1
            time.sleep(0.01)  # until `none` is written down
        broken_store.unlink()
    assert len(ids_in(tmp_path)) == appended - 3
    assert log.dropped == 3


@pytest.mark.usefixtures("broken_store")
def test_a_writer_counts_the_spool_that_it_finds(tmp_path: Path, make_record: MakeRecord) -> None:
    folder = tmp_path / "spool" / "predictions"
    folder.mkdir(parents=True)
    (folder / "00000000deadbeef-00000001.jsonl").write_bytes(b"x" * 5000)
    with LogWriter(str(tmp_path), max_spool_bytes=4000) as log, pytest.raises(LogError, match="the spool is full"):
        log.append([make_record()])


def test_a_spool_never_grows_beyond_what_is_allowed_not_by_one_append(tmp_path: Path, make_record: MakeRecord) -> None:
    size_bytes = len(encode_line(make_record()))
    with LogWriter(str(tmp_path), interval_s=NEVER_S, max_spool_bytes=2 * size_bytes) as log:
        with pytest.raises(LogError, match="the spool is full"):
            log.append([make_record() for _ in range(3)])
        log.append([make_record()])
    assert len(ids_in(tmp_path)) == 1


@pytest.mark.parametrize("of", ["segment", "lock"])
def test_a_dead_writers_segment_that_cannot_be_read_is_told_once_and_is_no_failure_of_the_store(
    of: str, tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "ADOPT_EVERY_S", 0.0)
    folder = tmp_path / "spool" / "predictions"
    unreadable = folder / "00000000deadbeef-00000001.jsonl"
    if of == "segment":
        unreadable.mkdir(parents=True)  # who may read everything cannot read this either
    else:
        folder.mkdir(parents=True)
        unreadable.write_bytes(encode_line(make_record()))
        (folder / "00000000deadbeef.lock").mkdir()
    adopted = encode_line(make_record())
    (folder / "00000000feedbeef-00000001.jsonl").write_bytes(adopted)  # one that comes after it
    with LogWriter(str(tmp_path), durability="remote", interval_s=0.01, patience_s=30) as log:
        for _ in range(3):
            log.append([make_record()])
        log.flush()
        assert log.backlog().failures == 0
    assert len(ids_in_store(tmp_path)) == 4
    assert caplog.text.count(str(unreadable.name).removesuffix("-00000001.jsonl")) == 1
    assert unreadable.exists()
    if of == "segment":
        with pytest.raises(StorageError, match=r"deadbeef-00000001\.jsonl: the segment cannot be read"):
            ids_in(tmp_path)


def ids_in_store(log: Path) -> set[str]:
    lines = [
        line for file in (log / "predictions").rglob("*.jsonl.gz") for line in gzip.decompress(file.read_bytes()).splitlines()
    ]
    return {json.loads(line)["prediction_id"] for line in lines}


def test_what_level_none_holds_is_written_down_at_the_end_though_the_store_hangs(
    held_store: threading.Event, tmp_path: Path, make_record: MakeRecord
) -> None:
    log = LogWriter(str(tmp_path), durability="none", interval_s=NEVER_S, segment_records=2)
    log.append([make_record(), make_record()])  # the shipper hangs with these
    wait_until(lambda: bool(list((tmp_path / "spool" / "predictions").glob("*.jsonl"))) and not log._unwritten)
    time.sleep(0.1)
    log.append([make_record()])
    assert len(log._unwritten) == 1
    log.close(patience_s=0.1)
    assert len(ids_in(tmp_path)) == 3
    held_store.set()
    log._shipper.join(10)


def test_what_came_while_the_store_took_its_time_is_shipped_at_the_end(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, opened, create = threading.Event(), threading.Event(), storage.create

    def wait(url: str, data: bytes) -> bool:
        came.set()
        opened.wait(30)
        return create(url, data)

    monkeypatch.setattr(storage, "create", wait)
    log = LogWriter(str(tmp_path), interval_s=NEVER_S, segment_records=1)
    log.append([make_record()])
    assert came.wait(30)
    log.append([make_record()])
    end = threading.Thread(target=log.close, args=(30.0,))
    end.start()
    assert log._stop.wait(30)
    opened.set()
    end.join()
    assert not list((tmp_path / "spool" / "predictions").glob("*.jsonl"))
    assert len(ids_in(tmp_path)) == 2


def test_what_another_writer_shipped_makes_room_again(tmp_path: Path, make_record: MakeRecord) -> None:
    folder = tmp_path / "spool" / "predictions"
    folder.mkdir(parents=True)
    living = folder / "00000000deadbeef-00000001.jsonl"
    with FileLock(folder / "00000000deadbeef.lock"):
        living.write_bytes(b"x" * 5000)
        with LogWriter(str(tmp_path), interval_s=0.02, max_spool_bytes=4000) as log:
            with pytest.raises(LogError, match="the spool is full"):
                log.append([make_record()])
            living.unlink()
            wait_until(lambda: not log._spool.size_bytes)
            log.append([make_record()])
    assert len(ids_in(tmp_path)) == 1
