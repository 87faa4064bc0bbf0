import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.conftest import wait_until
from tests.prediction_log.conftest import DAY, NOON, ids_in

from pigeonhole import storage
from pigeonhole.errors import LogError, StorageError
from pigeonhole.prediction_log import LogWriter, Record, new_id, read_window, writer
from pigeonhole.prediction_log.record import encode_line
from pigeonhole.prediction_log.writer import ship_segment

MakeRecord = Callable[..., Record]


@pytest.fixture
def slow_log(tmp_path: Path) -> Iterator[LogWriter]:
    """A log that ships only when it is told to."""
    with LogWriter(str(tmp_path), interval_s=3600) as log:
        yield log


def test_a_record_can_be_read_back_as_soon_as_append_returns(
    slow_log: LogWriter, tmp_path: Path, make_record: MakeRecord
) -> None:
    record = make_record()
    slow_log.append([record])
    assert list(read_window(str(tmp_path), NOON, NOON + DAY)) == [record]
    assert not (tmp_path / "predictions").exists()


def test_a_shipped_record_is_in_the_object_of_its_hour_and_gone_from_the_spool(
    slow_log: LogWriter, tmp_path: Path, make_record: MakeRecord
) -> None:
    records = [make_record(at=NOON + timedelta(minutes=minutes)) for minutes in (0, 59, 60, 1)]
    slow_log.append(records)
    slow_log.flush()
    objects = storage.list_files(str(tmp_path / "predictions"))
    assert [path.rpartition("/")[0] for path in objects] == ["date=2026-03-01/hour=12", "date=2026-03-01/hour=13"]
    assert all(path.endswith("-00000001.jsonl.gz") for path in objects)
    lines = gzip.decompress((tmp_path / "predictions" / objects[0]).read_bytes()).splitlines()
    assert [json.loads(line)["at"][14:16] for line in lines] == ["00", "59", "01"]
    assert list((tmp_path / "spool" / "predictions").glob("*.jsonl")) == []
    assert sorted(ids_in(tmp_path)) == sorted(record.prediction_id for record in records)


def test_the_shipper_ships_after_the_interval(tmp_path: Path, make_record: MakeRecord) -> None:
    with LogWriter(str(tmp_path), interval_s=0.05) as log:
        log.append([make_record()])
        wait_until(lambda: storage.list_files(str(tmp_path / "predictions")) != [])
        wait_until(lambda: log.backlog().size_bytes == 0)


def test_the_shipper_does_not_wait_when_a_segment_is_full(tmp_path: Path, make_record: MakeRecord) -> None:
    with LogWriter(str(tmp_path), interval_s=3600, segment_records=10) as log:
        log.append([make_record() for _ in range(12)])
        wait_until(lambda: storage.list_files(str(tmp_path / "predictions")) != [])


def test_closing_ships_what_is_left_and_leaves_no_file_in_the_spool(tmp_path: Path, make_record: MakeRecord) -> None:
    with LogWriter(str(tmp_path), interval_s=3600) as log:
        log.append([make_record()])
    assert len(storage.list_files(str(tmp_path / "predictions"))) == 1
    assert storage.list_files(str(tmp_path / "spool")) == []


def test_shipping_twice_changes_nothing(tmp_path: Path, make_record: MakeRecord) -> None:
    segment = tmp_path / "0123456789abcdef-00000001.jsonl"
    data = b"".join(encode_line(make_record()) for _ in range(3))
    store = str(tmp_path / "log" / "predictions")
    segment.write_bytes(data)
    ship_segment(segment, store)
    (name,) = storage.list_files(store)
    before = (tmp_path / "log" / "predictions" / name).read_bytes()
    segment.write_bytes(data)
    ship_segment(segment, store)
    assert storage.list_files(store) == [name]
    assert (tmp_path / "log" / "predictions" / name).read_bytes() == before
    assert gzip.decompress(before) == data
    ship_segment(segment, store)  # somebody else was faster
    window = read_window(str(tmp_path / "log"), NOON, NOON + DAY)
    assert (len(list(window)), window.counts.duplicates) == (3, 0)


def test_damaged_lines_are_shipped_as_evidence_and_counted(tmp_path: Path, make_record: MakeRecord) -> None:
    segment = tmp_path / "0123456789abcdef-00000001.jsonl"
    good = [encode_line(make_record(at=NOON)), encode_line(make_record(at=NOON + timedelta(hours=1)))]
    segment.write_bytes(b"garbage\n" + good[0] + b"{torn\n" + good[1] + good[0][:40])
    ship_segment(segment, str(tmp_path / "log" / "predictions"))
    hours = [
        read_window(str(tmp_path / "log"), NOON + timedelta(hours=hour), NOON + timedelta(hours=hour + 1)) for hour in (0, 1)
    ]
    assert [(len(list(hour)), hour.counts.torn) for hour in hours] == [(1, 2), (1, 1)]


def test_a_segment_without_one_good_line_is_kept_in_the_hour_it_was_written(tmp_path: Path) -> None:
    segment = tmp_path / "0123456789abcdef-00000001.jsonl"
    segment.write_bytes(b'{"torn\n')
    os.utime(segment, (NOON.timestamp(),) * 2)
    ship_segment(segment, str(tmp_path / "log" / "predictions"))
    window = read_window(str(tmp_path / "log"), NOON, NOON + timedelta(hours=1))
    assert (list(window), window.counts.torn) == ([], 1)


def test_an_object_of_another_content_under_the_same_name_is_neither_overwritten_nor_taken_for_this_one(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    store = str(tmp_path / "log" / "predictions")
    segment = tmp_path / "0123456789abcdef-00000001.jsonl"
    records = [make_record(), make_record()]
    for record in records:
        segment.write_bytes(encode_line(record))
        ship_segment(segment, store)
    assert len(storage.list_files(store)) == 2
    assert sorted(ids_in(tmp_path / "log")) == sorted(record.prediction_id for record in records)


def test_an_empty_segment_leaves_no_object(tmp_path: Path) -> None:
    segment = tmp_path / "0123456789abcdef-00000001.jsonl"
    segment.touch()
    ship_segment(segment, str(tmp_path / "log" / "predictions"))
    assert storage.list_files(str(tmp_path / "log")) == []


def test_a_failing_store_keeps_the_spool_and_is_tried_again_until_it_works(
    tmp_path: Path, make_record: MakeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "predictions"
    store.write_text("a file where the folder should be")
    records = [make_record() for _ in range(5)]
    with caplog.at_level(logging.WARNING), LogWriter(str(tmp_path), interval_s=0.01) as log:
        log.append(records)
        wait_until(lambda: log.backlog().failures >= 2)
        log.append([make_record()])
        assert log.backlog().size_bytes > 0
        store.unlink()
        wait_until(lambda: log.backlog().size_bytes == 0 and log.backlog().failures == 0)
    assert len(ids_in(tmp_path)) == 6
    assert [message.split(":")[0].split(",")[0] for message in caplog.messages] == [
        "the prediction log stays in the spool for now",
        "the prediction log is shipped again",
    ]


def test_an_outage_of_any_length_is_survived(tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_BACKOFF_S", 0.01)  # 5 s each would be an hour and a half
    record = make_record()
    with monkeypatch.context() as patched:
        patched.setattr(writer, "ship_segment", lambda *_: (_ for _ in ()).throw(StorageError("the store is away")))
        log = LogWriter(str(tmp_path), interval_s=0.01)
        log.append([record])
        wait_until(lambda: log.backlog().failures > 0)
        log._failures += 10_000
        failures = log._failures
        wait_until(lambda: log.backlog().failures > failures + 1)
    wait_until(lambda: ids_in(tmp_path) == [record.prediction_id] and log.backlog() == writer.Backlog(0, 0.0, 0))
    log.close()


def test_a_store_that_is_away_is_asked_after_pauses_that_double_up_to_a_limit(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_BACKOFF_S", 0.08)
    monkeypatch.setattr(writer, "ship_segment", lambda *_: (_ for _ in ()).throw(StorageError("the store is away")))
    with LogWriter(str(tmp_path), interval_s=0.01) as log:
        pauses: list[float] = []
        wait = log._stop.wait

        def wait_noting(seconds: float) -> bool:
            pauses.append(seconds)
            return wait(seconds)

        monkeypatch.setattr(log._stop, "wait", wait_noting)
        log.append([make_record()])
        wait_until(lambda: len(pauses) >= 5)
    assert pauses[:5] == [0.02, 0.04, 0.08, 0.08, 0.08]


def test_what_a_failing_store_never_took_is_adopted_by_the_next_writer(tmp_path: Path, make_record: MakeRecord) -> None:
    store = tmp_path / "predictions"
    store.write_text("a file where the folder should be")
    with LogWriter(str(tmp_path), interval_s=3600) as log:
        log.append([make_record()])
    assert len(list((tmp_path / "spool" / "predictions").glob("*.jsonl"))) == 1
    store.unlink()
    with LogWriter(str(tmp_path), interval_s=3600) as log:
        log.flush()
        assert log.backlog().size_bytes == 0
    assert len(ids_in(tmp_path)) == 1


def test_a_stuck_store_does_not_hold_up_the_end(tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    others = set(threading.enumerate())

    def hang(*_: object) -> bool:
        release.wait(30)
        return True

    monkeypatch.setattr(storage, "create", hang)
    log = LogWriter(str(tmp_path), interval_s=0.01)
    log.append([make_record()])
    began = time.monotonic()
    log.close(patience_s=0.1)
    assert time.monotonic() - began < 20  # the store hangs for 30
    assert len(ids_in(tmp_path)) == 1
    release.set()
    wait_until(lambda: set(threading.enumerate()) <= others)


def test_the_backlog_tells_bytes_and_age(slow_log: LogWriter, tmp_path: Path, make_record: MakeRecord) -> None:
    assert slow_log.backlog() == writer.Backlog(size_bytes=0, oldest_s=0.0, failures=0)
    now = datetime.now(UTC)
    slow_log.append([make_record(at=now - timedelta(seconds=60)), make_record(at=now)])
    (segment,) = (tmp_path / "spool" / "predictions").glob("*.jsonl")
    backlog = slow_log.backlog()
    assert backlog.size_bytes == segment.stat().st_size
    assert backlog.oldest_s == pytest.approx(60, abs=5)
    segment.write_bytes(b"damaged")
    os.utime(segment, (time.time() - 120,) * 2)
    assert slow_log.backlog().oldest_s == pytest.approx(120, abs=5)


def test_records_of_another_day_go_where_their_time_says(slow_log: LogWriter, tmp_path: Path, make_record: MakeRecord) -> None:
    """A clock that is a day off gives a record that is a day off, and no other record pays for it."""
    slow_log.append([make_record(at=NOON - DAY), make_record(at=NOON), make_record(at=NOON + DAY)])
    slow_log.flush()
    for day in (-1, 0, 1):
        window = read_window(str(tmp_path), NOON + day * DAY, NOON + day * DAY + timedelta(hours=1))
        assert (len(list(window)), window.counts.misplaced) == (1, 0)


def test_threads_and_writers_together_lose_and_double_nothing(tmp_path: Path, make_record: MakeRecord) -> None:
    def write(log: LogWriter, records: list[Record]) -> None:
        for record in records:
            log.append([record])

    batches = [[make_record() for _ in range(150)] for _ in range(8)]
    with LogWriter(str(tmp_path), interval_s=0.01, segment_records=40) as one, LogWriter(str(tmp_path), interval_s=0.02) as two:
        threads = [threading.Thread(target=write, args=(log, batch)) for log, batch in zip([one, two] * 4, batches, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    window = read_window(str(tmp_path), NOON, NOON + DAY)
    assert sorted(record.prediction_id for record in window) == sorted(
        record.prediction_id for batch in batches for record in batch
    )
    assert (window.counts.torn, window.counts.damaged_objects, window.counts.misplaced) == (0, 0, 0)


def test_a_full_disk_is_said_once_and_so_is_its_end(
    slow_log: LogWriter, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole_write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda handle, data: whole_write(handle, data[:-7]))
        for _ in range(3):
            with pytest.raises(LogError, match="the disk is full"):
                slow_log.append([make_record()])
    slow_log.append([make_record()])
    slow_log.append([make_record()])
    said = [message.partition(":")[0] for message in caplog.messages]
    assert said == ["records are not written down for now", "records are written down again"]
    assert caplog.messages[0].endswith("the disk is full")


def test_a_full_disk_is_an_error_of_the_caller_who_then_has_no_record(
    slow_log: LogWriter, tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = make_record()
    slow_log.append([kept])
    whole_write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda handle, data: whole_write(handle, data[:-7]))
        with pytest.raises(LogError, match="the disk is full"):
            slow_log.append([make_record(), make_record()])
    window = read_window(str(tmp_path), NOON, NOON + DAY)
    assert (list(window), window.counts.torn) == ([kept], 0)


WRITE_FOR_EVER = """
    import sys
    from datetime import UTC, datetime
    from pigeonhole.prediction_log import Features, LogWriter, Record, new_id

    log = LogWriter(sys.argv[1], interval_s=0.02, segment_records=50)
    while True:
        at = datetime.now(UTC)
        features = Features(n_chars=1, n_words=1, n_tokens=3, unknown_tokens=0, truncated=False, max_logit=1.0)
        record = Record(prediction_id=new_id(), at=at, request_id="r", model="m", version="v", text="t" * 200, text_policy="full",
                        features=features, label="a", score=0.5, probabilities={"a": 0.5, "b": 0.5}, decision="accept",
                        latency_ms=1.0)
        log.append([record])
        print(record.prediction_id, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL, not Windows")
def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for life_s in (0.05, 0.11, 0.2):
        command = [sys.executable, "-c", textwrap.dedent(WRITE_FOR_EVER), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged += [process.stdout.readline().strip() for _ in range(40)]
            time.sleep(life_s)
            process.send_signal(signal.SIGKILL)
            acknowledged += process.stdout.read().split("\n")[:-1]  # a line that was not printed whole was not acknowledged
    assert len(acknowledged) > 100
    assert set(acknowledged) <= set(ids_in(tmp_path))

    with LogWriter(str(tmp_path), interval_s=3600) as heir:
        heir.flush()
        assert heir.backlog().size_bytes == 0
    shipped = ids_in(tmp_path)
    assert set(acknowledged) <= set(shipped)
    assert len(shipped) == len(set(shipped))


def test_a_spool_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written here"):
        LogWriter(str(tmp_path / "file"))


def test_a_remote_log_is_shipped_from_a_local_spool_and_read_back(tmp_path: Path, make_record: MakeRecord) -> None:
    url = f"memory://log-{new_id()}"
    records = [make_record(at=NOON + timedelta(hours=hour)) for hour in range(3)]
    with LogWriter(url, spool=str(tmp_path), interval_s=3600) as log:
        log.append(records)
        assert len(list((tmp_path / "predictions").glob("*.jsonl"))) == 1
        assert list(read_window(url, NOON, NOON + DAY)) == []
        log.flush()
    assert list(read_window(url, NOON, NOON + DAY)) == records
    assert list(read_window(url, NOON, NOON + timedelta(hours=1))) == records[:1]
    assert storage.list_files(str(tmp_path)) == []


def test_new_ids_lead_to_the_partition(tmp_path: Path) -> None:
    milliseconds = int(new_id().replace("-", "")[:12], 16)
    assert abs(datetime.fromtimestamp(milliseconds / 1000, UTC) - datetime.now(UTC)) < timedelta(minutes=1)
