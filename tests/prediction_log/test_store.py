"""A bucket behind a network that fails: real HTTP, honest preconditions."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.conftest import gs_at, wait_until
from tests.prediction_log.conftest import NOON

from pigeonhole import storage
from pigeonhole.chaos.bucket import Bucket
from pigeonhole.chaos.faults import Fault, FaultProxy
from pigeonhole.prediction_log import LogWriter, Record, read_window

MakeRecord = Callable[..., Record]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    with Bucket(tmp_path / "bucket") as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[FaultProxy]:
    """What stands between `gs://` and the bucket."""
    with FaultProxy(bucket.server_port, seed=0) as proxy, gs_at(proxy.server_port):
        yield proxy


@pytest.mark.parametrize("fault", ["503", "truncated", "unheard", "cut"])
def test_whatever_the_network_does_each_record_is_in_the_bucket_once(
    fault: Fault, proxy: FaultProxy, bucket: Bucket, tmp_path: Path, make_record: MakeRecord
) -> None:
    records = [make_record() for _ in range(3)]
    with LogWriter("gs://bucket/log", spool=str(tmp_path / "spool"), interval_s=0.02) as log:
        proxy.faults = (fault,)
        for record in records:
            log.append([record])
        wait_until(lambda: bool(proxy.met[fault]))
        assert log.backlog().size_bytes > 0
        proxy.faults = ()
        wait_until(lambda: not log.backlog().size_bytes)
    window = read_window("gs://bucket/log", NOON, NOON + timedelta(hours=1))
    assert sorted(record.prediction_id for record in window) == sorted(record.prediction_id for record in records)
    assert (window.counts.duplicates, window.counts.torn, window.counts.damaged_objects) == (0, 0, 0)
    assert set(bucket.objects.generations.values()) == {1}, "nothing was written over"


def test_two_replicas_in_one_hour_overwrite_nothing(
    proxy: FaultProxy, bucket: Bucket, tmp_path: Path, make_record: MakeRecord
) -> None:
    assert proxy.faults == ()
    writers = [LogWriter("gs://bucket/log", spool=str(tmp_path / name), interval_s=3600) for name in ("one", "two")]
    for _ in range(20):
        for writer in writers:
            writer.append([make_record()])
            writer.flush()
    for writer in writers:
        writer.close()
    assert len(list(read_window("gs://bucket/log", NOON, NOON + timedelta(hours=1)))) == 40
    assert list(bucket.objects.generations.values()) == [1] * 40


@pytest.mark.usefixtures("proxy")
def test_more_objects_than_a_page_holds_are_all_listed(bucket: Bucket) -> None:
    for number in range(1100):
        bucket.objects.write(f"many/{number:04}", b"", 0)
    assert len(storage.list_files("gs://bucket/many")) == 1100
