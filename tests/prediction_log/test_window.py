import gzip
import itertools
import re
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from pigeonhole import storage
from pigeonhole.errors import ConfigError
from pigeonhole.prediction_log import Feedback, LogWriter, Record, new_id, read_window
from pigeonhole.prediction_log.record import encode_line
from pigeonhole.prediction_log.window import LINE_LIMIT_BYTES

MakeRecord = Callable[..., Record]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def put(log: Path, data: bytes, hour: str = "date=2026-03-01/hour=12", name: str = "w-00000001.jsonl.gz") -> Path:
    """Lay an object into the log, as it comes."""
    path = log / "predictions" / hour / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def with_checksum(body: bytes) -> bytes:
    return b'%b,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


@pytest.mark.parametrize("start", [NOON, NOON + HOUR / 2], ids=["of whole hours", "of two halves"])
def test_the_window_begins_with_start_and_ends_before_end(tmp_path: Path, make_record: MakeRecord, start: datetime) -> None:
    times = [start - timedelta(microseconds=1), start, start + HOUR - timedelta(microseconds=1), start + HOUR]
    with LogWriter(str(tmp_path)) as log:
        log.append([make_record(at=at) for at in times])
        for _ in range(2):  # from the spool, then from the store
            assert [record.at for record in read_window(str(tmp_path), start, start + HOUR)] == times[1:3]
            log.flush()


def test_start_and_end_may_be_in_any_time_zone_but_need_one(tmp_path: Path, make_record: MakeRecord) -> None:
    with LogWriter(str(tmp_path)) as log:
        log.append([make_record(at=NOON)])
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    window = read_window(str(tmp_path), NOON.astimezone(kathmandu), (NOON + HOUR).astimezone(kathmandu))
    assert len(list(window)) == 1
    with pytest.raises(ConfigError, match="end=2026-03-01T13:00:00 has no time zone"):
        read_window(str(tmp_path), NOON, datetime(2026, 3, 1, 13))  # noqa: DTZ001


def test_an_empty_log_or_window_gives_no_record(tmp_path: Path, make_record: MakeRecord) -> None:
    assert list(read_window(str(tmp_path / "nowhere"), NOON, NOON + HOUR)) == []
    put(tmp_path, gzip.compress(encode_line(make_record())))
    assert list(read_window(str(tmp_path), NOON, NOON)) == []
    assert list(read_window(str(tmp_path), NOON + HOUR, NOON - HOUR)) == []
    assert list(read_window(str(tmp_path), NOON + HOUR, NOON + 2 * HOUR)) == []


def test_only_the_hours_of_the_window_are_opened(tmp_path: Path, make_record: MakeRecord) -> None:
    put(tmp_path, gzip.compress(encode_line(make_record())))
    for other in ("date=2026-03-01/hour=11", "date=2026-03-01/hour=13", "date=2026-02-28/hour=12", "date=2027-03-01/hour=12"):
        put(tmp_path, b"opening this would be counted as damage", hour=other)
    window = read_window(str(tmp_path), NOON, NOON + HOUR)
    assert (len(list(window)), window.counts.damaged_objects) == (1, 0)
    everything = read_window(str(tmp_path), datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    assert (len(list(everything)), everything.counts.damaged_objects) == (1, 4)


def test_a_record_shipped_twice_or_still_in_the_spool_is_read_once(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    line = encode_line(record)
    put(tmp_path, gzip.compress(line + line))
    put(tmp_path, gzip.compress(line), name="w-00000002.jsonl.gz")
    (tmp_path / "spool" / "predictions").mkdir(parents=True)
    (tmp_path / "spool" / "predictions" / "w-00000003.jsonl").write_bytes(line)
    window = read_window(str(tmp_path), NOON, NOON + HOUR)
    assert list(window) == [record]
    assert window.counts.duplicates == 3


def test_torn_and_changed_lines_are_counted_and_left_out(tmp_path: Path, make_record: MakeRecord) -> None:
    good, bad = encode_line(make_record()), encode_line(make_record())
    wrong_shape = with_checksum(b'{"schema_version":1,"at":"2026-03-01T12:00:00Z"')
    no_head = with_checksum(b'{"schema_version":"one"')
    not_json = with_checksum(b"{nonsense")
    changed = bad.replace(b'"score":0.75', b'"score":0.99')
    too_deep = with_checksum(b'{"schema_version":1,"more":' + b"[" * 100_000)
    not_utf8 = with_checksum(b'{"schema_version":1,"id":"\xff"')
    lines = [bad[:50] + b"\n", changed, b"\n", wrong_shape, no_head, not_json, too_deep, not_utf8, good]
    put(tmp_path, gzip.compress(b"".join(lines)))
    window = read_window(str(tmp_path), NOON, NOON + HOUR)
    assert (len(list(window)), window.counts.torn) == (1, 8)


def test_damage_in_the_spool_is_counted_but_an_unfinished_line_is_not(tmp_path: Path, make_record: MakeRecord) -> None:
    line = encode_line(make_record())
    spool = tmp_path / "spool" / "predictions"
    spool.mkdir(parents=True)
    (spool / "w-00000001.jsonl").write_bytes(b"garbage\n" + line + line[:-30])
    (spool / "w-00000002.jsonl").write_bytes(b"")
    (spool / "w-00000003.jsonl").write_bytes(line[:10])
    window = read_window(str(tmp_path), NOON, NOON + HOUR)
    assert (len(list(window)), window.counts.torn) == (1, 1)


def test_a_newer_schema_version_is_counted_and_a_new_field_of_this_one_is_skipped(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    body = encode_line(make_record()).rpartition(b',"crc32"')[0]
    newer = with_checksum(body.replace(b'"schema_version":1', b'"schema_version":2'))
    longer = with_checksum(body + b',"language":"en"')
    put(tmp_path, gzip.compress(newer + longer))
    window = read_window(str(tmp_path), NOON, NOON + HOUR)
    assert (len(list(window)), window.counts.unknown_versions, window.counts.torn) == (1, 1, 0)


def test_a_record_in_the_partition_of_another_hour_is_counted_and_left_out(tmp_path: Path, make_record: MakeRecord) -> None:
    put(tmp_path, gzip.compress(encode_line(make_record(at=NOON))), hour="date=2026-03-01/hour=13")
    window = read_window(str(tmp_path), NOON, NOON + 2 * HOUR)
    assert (list(window), window.counts.misplaced) == ([], 1)


@pytest.mark.parametrize("folder", ["date=2026-03-01/hour=12.bak", "date=2026-03-01/hour=1", "date=2026-03-99/hour=12"])
def test_records_in_a_folder_that_is_no_hour_are_counted_and_left_out(
    tmp_path: Path, make_record: MakeRecord, folder: str
) -> None:
    put(tmp_path, gzip.compress(encode_line(make_record(at=NOON))), hour=folder)
    window = read_window(str(tmp_path), NOON - 12 * HOUR, NOON + timedelta(days=99))
    assert (list(window), window.counts.misplaced) == ([], 1)


def test_what_stands_before_the_damage_in_an_object_is_read(tmp_path: Path, make_record: MakeRecord) -> None:
    lines = [encode_line(make_record(text=new_id() * 300)) for _ in range(30)]
    packed = gzip.compress(b"".join(lines))
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    for damaged in (packed[: len(packed) // 2], bytes(flipped), b"", b"not gzip at all"):
        put(tmp_path, damaged)
        window = read_window(str(tmp_path), NOON, NOON + HOUR)
        found = [encode_line(record) for record in window]
        assert len(found) < 30
        assert window.counts.damaged_objects == 1
        assert found == lines[: len(found)]
    put(tmp_path, packed[: len(packed) // 2])
    assert len(list(read_window(str(tmp_path), NOON, NOON + HOUR))) > 5


def test_every_flipped_bit_of_an_object_gives_true_records_or_none(tmp_path: Path, make_record: MakeRecord) -> None:
    records = [make_record() for _ in range(3)]
    packed = gzip.compress(b"".join(map(encode_line, records)), mtime=0)
    for place in range(len(packed)):
        put(tmp_path, packed[:place] + bytes([packed[place] ^ 0x10]) + packed[place + 1 :])
        assert all(record in records for record in read_window(str(tmp_path), NOON, NOON + HOUR))


def test_an_endless_line_does_not_fill_the_memory(tmp_path: Path, make_record: MakeRecord) -> None:
    put(tmp_path, gzip.compress(b"a" * (3 * LINE_LIMIT_BYTES) + b"\n" + encode_line(make_record())))
    window = read_window(str(tmp_path), NOON, NOON + HOUR)
    assert len(list(window)) == 1
    assert window.counts.torn >= 3


def test_files_that_are_no_objects_are_passed_over(tmp_path: Path, make_record: MakeRecord) -> None:
    put(tmp_path, gzip.compress(encode_line(make_record())))
    put(tmp_path, b"half written", name=".w-00000002.jsonl.gz.abc.tmp")
    (tmp_path / "predictions" / "notes.txt").write_text("hello")
    window = read_window(str(tmp_path), NOON, NOON + HOUR)
    assert (len(list(window)), window.counts.damaged_objects) == (1, 0)


def test_an_object_that_goes_away_meanwhile_is_no_error(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, gzip.compress(encode_line(make_record())))
    listed = storage.list_files

    def list_more(url: str) -> list[str]:
        return [*listed(url), "gone-00000001.jsonl.gz"]

    monkeypatch.setattr(storage, "list_files", list_more)
    assert len(list(read_window(str(tmp_path), NOON, NOON + HOUR))) == 1


def test_what_has_taken_the_place_of_an_object_since_it_was_listed_is_read(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a compacted object does."""
    put(tmp_path, gzip.compress(encode_line(make_record())))
    listed, looks = storage.list_files, itertools.count()
    monkeypatch.setattr(storage, "list_files", lambda url: listed(url) if next(looks) else ["gone-00000001.jsonl.gz"])
    assert len(list(read_window(str(tmp_path), NOON, NOON + HOUR))) == 1


def test_each_pass_reads_anew_and_counts_anew(tmp_path: Path, make_record: MakeRecord) -> None:
    line = encode_line(make_record())
    put(tmp_path, gzip.compress(line + line))
    window = read_window(str(tmp_path), NOON, NOON + HOUR)
    for _ in range(2):
        assert len(list(window)) == 1
        assert (window.counts.records, window.counts.duplicates) == (1, 1)


def test_feedback_lives_beside_the_predictions_in_the_same_form(tmp_path: Path, make_record: MakeRecord) -> None:
    feedback = Feedback(feedback_id=new_id(), at=NOON, prediction_id=new_id(), label="refund", source="agent")
    with LogWriter(str(tmp_path)) as log, LogWriter(str(tmp_path), "feedback") as feedback_log:
        log.append([make_record()])
        feedback_log.append([feedback, feedback])
    window = read_window(str(tmp_path), NOON, NOON + HOUR, "feedback")
    assert list(window) == [feedback]
    assert window.counts.duplicates == 1
    assert len(list(read_window(str(tmp_path), NOON, NOON + HOUR))) == 1


def test_a_record_of_the_first_release_stays_readable(tmp_path: Path) -> None:
    """A line as version 1 wrote it, byte for byte: whoever changes the record must still read this."""
    line = (
        b'{"schema_version":1,"prediction_id":"019ca92d-8a00-7000-8000-000000000001","at":"2026-03-01T12:00:00.5Z",'
        b'"request_id":"r-1","model":"tickets","version":"20260301-1","text":"caf\xc3\xa9 \xe2\x80\xa8 [SEP]","text_policy":'
        b'"full","features":{"n_chars":12,"n_words":2,"n_tokens":7,"unknown_tokens":1,"truncated":false,"max_logit":2.5},'
        b'"label":"delivery","score":0.75,"probabilities":{"delivery":0.75,"refund":0.25},"decision":"review","latency_ms":3.5'
        b',"crc32":"CHECKSUM"}\n'
    )
    body = line.rpartition(b',"crc32"')[0]
    put(tmp_path, gzip.compress(re.sub(b"CHECKSUM", b"%08x" % zlib.crc32(body), line)))
    (record,) = read_window(str(tmp_path), NOON, NOON + HOUR)
    assert record.text == "café \u2028 [SEP]"
    assert record.at == NOON + timedelta(milliseconds=500)
    assert record.features.unknown_tokens == 1
    assert record.decision == "review"


def test_a_writer_whose_clock_is_a_day_ahead_is_noticed_and_is_in_no_window_of_today(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    now = datetime.now(UTC)
    right = make_record(at=now)
    with LogWriter(str(tmp_path), interval_s=3600) as log:
        log.append([right, make_record(at=now + timedelta(days=1)), make_record(at=now + timedelta(days=2))])
    (tmp_path / "predictions" / "date=unheard of").mkdir()
    for _ in range(2):
        window = read_window(str(tmp_path), now - HOUR, now + timedelta(seconds=1))
        assert list(window) == [right]
        assert window.counts.hours_ahead == 2
