import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pigeonhole.errors import ConfigError
from pigeonhole.prediction_log import Record, is_sampled, kept_text, new_id
from pigeonhole.prediction_log.record import encode_line, is_intact, partition_of, span_of


def test_a_line_is_json_whose_last_member_is_the_checksum_of_the_bytes_before_it(make_record: Callable[..., Record]) -> None:
    line = encode_line(make_record("café\n\u2028"))
    assert line.endswith(b'"}\n')
    assert line.count(b"\n") == 1
    value = json.loads(line)
    body = line[: line.rindex(b',"crc32"')]
    assert list(value)[-1] == "crc32"
    assert value["crc32"] == f"{zlib.crc32(body):08x}"
    assert value["text"] == "café\n\u2028"
    assert value["at"] == "2026-03-01T12:00:00Z"


def test_a_record_without_a_time_zone_is_not_written(make_record: Callable[..., Record]) -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        encode_line(make_record(at=datetime(2026, 3, 1, 12)))  # noqa: DTZ001


def test_every_changed_byte_of_a_line_is_seen(make_record: Callable[..., Record]) -> None:
    line = encode_line(make_record()).removesuffix(b"\n")
    assert is_intact(line)
    for place in range(len(line)):
        assert not is_intact(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
        assert not is_intact(line[:place])
    assert not is_intact(b"")


def test_a_text_that_looks_like_a_checksum_changes_nothing(make_record: Callable[..., Record]) -> None:
    line = encode_line(make_record('x","crc32":"00000000"}')).removesuffix(b"\n")
    assert is_intact(line)


def test_a_record_is_of_the_utc_hour_wherever_it_was_written() -> None:
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    assert partition_of(datetime(2026, 1, 1, 4, 30, tzinfo=kathmandu)) == "date=2025-12-31/hour=22"
    assert partition_of(datetime(33, 1, 1, tzinfo=UTC)) == "date=0033-01-01/hour=00"


def test_ids_are_version_7_uuids_that_sort_by_time() -> None:
    before = time.time_ns() // 1_000_000
    first = new_id()
    time.sleep(0.002)
    second = new_id()
    parsed = uuid.UUID(first)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= time.time_ns() // 1_000_000
    assert first < second
    assert len({new_id() for _ in range(10_000)}) == 10_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Linux: nothing forks on Windows")
def test_a_forked_process_hands_out_none_of_its_parents_ids() -> None:
    program = """
import os
from pigeonhole.prediction_log import new_id
new_id()
reading, writing = os.pipe()
child = os.fork()
drawn = " ".join(new_id()[-17:] for _ in range(100))  # what of it is random
if child == 0:
    os.write(writing, drawn.encode())
    os._exit(0)
os.waitpid(child, 0)
print(len({*drawn.split(), *os.read(reading, 10_000).decode().split()}))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "200\n"


def test_the_text_is_kept_as_the_policy_says() -> None:
    assert kept_text("my text", "full") == "my text"
    assert kept_text("my text", "none") is None
    expected = hmac.new(b"key", b"my text", hashlib.sha256).hexdigest()
    assert kept_text("my text", "hash", b"key") == f"hmac-sha256:{expected}"
    with pytest.raises(ConfigError, match="needs a key"):
        kept_text("my text", "hash")
    assert kept_text("call +49 30 1234567, or jo@ex.com", "redact") == "call [number], or [email]"


def test_a_sample_is_even_and_a_smaller_one_is_a_part_of_it() -> None:
    ids = [new_id() for _ in range(4000)]
    tenth, half = ([id_ for id_ in ids if is_sampled(id_, share)] for share in (0.1, 0.5))
    assert 300 < len(tenth) < 500
    assert 1850 < len(half) < 2150
    assert set(tenth) <= set(half)
    assert all(is_sampled(id_, 1.0) for id_ in ids)
    assert not any(is_sampled(id_, 0.0) for id_ in ids)


@pytest.mark.parametrize("partition", ["date=2026-03-01/hour=00", "date=9999-12-31/hour=23", "date=0001-01-01/hour=07"])
def test_the_span_of_an_hour_holds_its_first_and_last_moment_and_no_other_hour(partition: str) -> None:
    first, last = span_of(partition)
    assert partition_of(first) == partition_of(last) == partition
    assert last - first == timedelta(hours=1) - timedelta(microseconds=1)


@pytest.mark.parametrize("name", ["date=2026-02-30/hour=01", "date=2026-03-01/hour=24", "date=2026-03-01/hour=1", "a/b"])
def test_a_name_that_is_no_hour_spans_nothing(name: str) -> None:
    first, last = span_of(name)
    assert first == last < datetime(1, 1, 2, tzinfo=UTC)
