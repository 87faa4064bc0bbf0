import gzip
import io
import random
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.drift.conftest import NOON

from pigeonhole import storage
from pigeonhole.command import call
from pigeonhole.drift.compact import compact_log, compacted_lines, run
from pigeonhole.drift.settings import Settings
from pigeonhole.errors import RunError, StorageError
from pigeonhole.prediction_log import Feedback, Record, new_id, read_window
from pigeonhole.prediction_log.record import encode_line, partition_of

HOUR = timedelta(hours=1)
LATER = NOON + 5 * HOUR


def put(log: str, kind: str, record: Record | Feedback, name: str) -> None:
    """One object as a shipper makes it."""
    folder = Path(log) / kind / partition_of(record.at)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(encode_line(record)))


@pytest.fixture
def log(settings: Settings, records_of: Callable[..., list[Record]]) -> str:
    """Two hours of three objects each, one record of them shipped twice, and a feedback."""
    records = [*records_of(["one", "two", "three"]), *records_of(["four", "five", "six"], NOON + HOUR)]
    for number, record in enumerate([*records, records[0]]):
        put(settings.log, "predictions", record, f"writer-{number}")
    feedback = Feedback(feedback_id=new_id(), at=NOON, prediction_id=records[0].prediction_id, label="billing", source="a")
    put(settings.log, "feedback", feedback, "writer-0")
    return settings.log


def records_in(log: str) -> list[Record]:
    return sorted(read_window(log, NOON, LATER, read_compacted=compacted_lines), key=lambda record: record.prediction_id)


def objects(log: str) -> list[str]:
    return [name for name in storage.list_files(str(Path(log) / "predictions")) if name.endswith((".gz", ".parquet"))]


def test_each_hour_becomes_one_object_with_the_same_records(log: str) -> None:
    before = records_in(log)
    assert (len(before), len(objects(log))) == (6, 7)
    tally = compact_log(log, LATER)
    assert (tally.hours, tally.records, tally.duplicates, tally.sources_deleted, tally.sources_left) == (3, 7, 1, 8, [])
    assert records_in(log) == before
    assert len(objects(log)) == 2
    [feedback] = read_window(log, NOON, LATER, "feedback", compacted_lines)
    assert feedback.label == "billing"


def test_a_second_run_finds_nothing_to_do(log: str) -> None:
    compact_log(log, LATER)
    before = objects(log)
    assert compact_log(log, LATER).hours == 0
    assert objects(log) == before


def test_an_hour_that_has_not_settled_is_left_alone(log: str) -> None:
    assert compact_log(log, NOON + HOUR).hours == 2
    assert [name.endswith(".parquet") for name in objects(log)].count(True) == 1


def test_what_arrives_late_joins_the_compacted_object(
    log: str, settings: Settings, records_of: Callable[..., list[Record]]
) -> None:
    compact_log(log, LATER)
    put(settings.log, "predictions", records_of(["late"], NOON + timedelta(minutes=30))[0], "writer-9")
    assert compact_log(log, LATER).records == 4
    assert (len(records_in(log)), len(objects(log))) == (7, 2)


class Killed(BaseException):
    """The end of the process at this point."""


def deaths(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th write or deletion is done, and then the process dies; odd ones die before it is done."""
    steps: Iterator[int] = iter(range(1000))

    def mortal(act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            number = next(steps)
            if number == at // 2 and at % 2:
                raise Killed
            done = act(*arguments)
            if number == at // 2:
                raise Killed
            return done

        return step

    monkeypatch.setattr(storage, "create", mortal(storage.create))
    monkeypatch.setattr(storage, "delete", mortal(storage.delete))


@pytest.mark.parametrize("at", range(22))
def test_killed_at_any_point_nothing_is_lost_or_doubled(log: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = records_in(log)
    with monkeypatch.context() as patched:
        deaths(patched, at)
        with pytest.raises(Killed):
            compact_log(log, LATER)
    assert records_in(log) == before
    compact_log(log, LATER)
    assert records_in(log) == before
    assert len(objects(log)) == 2


def test_an_object_that_is_not_sound_stays_as_it_is(log: str) -> None:
    folder = Path(log) / "predictions" / "date=2026-03-01" / "hour=12"
    first, second, *_ = sorted(folder.glob("*.gz"))
    first.write_bytes(first.read_bytes()[:-9])
    second.rename(folder.parent / "hour=13" / second.name)
    tally = compact_log(log, LATER)
    assert sorted(tally.sources_left) == sorted(
        [f"date=2026-03-01/hour=12/{first.name}", f"date=2026-03-01/hour=13/{second.name}"]
    )
    assert first.exists()


def test_objects_that_are_foreign_damaged_torn_or_of_a_newer_release_stay_as_they_are(
    log: str, records_of: Callable[..., list[Record]]
) -> None:
    folder = Path(log) / "predictions" / "date=2026-03-01" / "hour=12"
    line = encode_line(records_of(["seven"])[0])
    newer = line.rpartition(b',"crc32"')[0].replace(b'"schema_version":1', b'"schema_version":2')
    pq.write_table(pa.table({"id": ["1"]}), foreign := io.BytesIO())
    kept = {
        "compact-0.parquet": b"PAR1 torn",
        "compact-1.parquet": foreign.getvalue(),
        "foreign.jsonl.gz": b"no gzip",
        "newer.jsonl.gz": gzip.compress(b'%b,"crc32":"%08x"}\n' % (newer, zlib.crc32(newer))),
        "torn.jsonl.gz": gzip.compress(line + line[:40] + b"\n"),
    }
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    assert compact_log(log, LATER).sources_left == [f"date=2026-03-01/hour=12/{name}" for name in kept]
    assert {name: (folder / name).read_bytes() for name in kept} == kept


def test_each_word_on_one_prediction_is_kept(log: str) -> None:
    [first] = read_window(log, NOON, LATER, "feedback", compacted_lines)
    put(log, "feedback", msgspec.structs.replace(first, feedback_id=new_id(), label="delivery"), "writer-1")
    compact_log(log, LATER)
    assert {word.label for word in read_window(log, NOON, LATER, "feedback", compacted_lines)} == {"billing", "delivery"}


def test_an_hour_settles_for_as_long_as_the_environment_says(
    log: str, records_of: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(log, "predictions", records_of(["young"], datetime.now(UTC) - 9 * HOUR)[0], "writer-9")
    monkeypatch.setenv("PIGEONHOLE_LOG", log)
    for settles, hours in (("12", 3), ("6", 1)):
        monkeypatch.setenv("PIGEONHOLE_SETTLE_HOURS", settles)
        assert call(run, []) == 0
        assert f'"hours":{hours}' in capsys.readouterr().out


def test_whatever_byte_of_a_compacted_object_is_damaged_the_rest_of_the_log_is_read(log: str) -> None:
    compact_log(log, LATER)
    damaged, whole = sorted((Path(log) / "predictions").rglob("*.parquet"))
    sound, others = damaged.read_bytes(), set(pq.read_table(whole)["prediction_id"].to_pylist())
    draw = random.Random(0)
    met = set()
    for _ in range(150):
        flipped = bytearray(sound)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        damaged.write_bytes(flipped)
        window = read_window(log, NOON, LATER, read_compacted=compacted_lines)
        assert others <= {record.prediction_id for record in window}
        met.add((window.counts.damaged_objects, window.counts.torn > 0))
    assert {(0, False), (1, False), (0, True)} <= met
    damaged.write_bytes(sound[:-9])
    assert compact_log(log, LATER).sources_left == []  # it stands alone, and as it is
    assert damaged.read_bytes() == sound[:-9]


def test_a_store_that_fails_is_not_taken_for_damage(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compact_log(log, LATER)

    def fail(_: object) -> None:
        raise TimeoutError("the store does not answer")

    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(StorageError, match="does not answer"):
        records_in(log)


def test_an_object_that_does_not_read_back_keeps_its_sources(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = objects(log)
    monkeypatch.setattr("pigeonhole.drift.compact.compacted_lines", lambda _: iter([b"something else"]))
    with pytest.raises(RunError, match="does not read back"):
        compact_log(log, LATER)
    assert set(before) <= set(objects(log))


def test_a_reader_without_parquet_refuses_a_compacted_hour_instead_of_missing_it(log: str) -> None:
    compact_log(log, LATER)
    with pytest.raises(StorageError, match="is compacted"):
        list(read_window(log, NOON, LATER))


def test_a_reader_that_is_overtaken_by_compaction_misses_nothing(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = records_in(log)
    listed = storage.list_files

    def overtaken(url: str) -> list[str]:
        names = listed(url)
        if "hour=" in url:
            with monkeypatch.context() as undone:
                undone.setattr(storage, "list_files", listed)
                compact_log(log, LATER)
        return names

    monkeypatch.setattr(storage, "list_files", overtaken)
    assert records_in(log) == before


def test_the_command_compacts_the_log_of_the_environment(
    log: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIGEONHOLE_LOG", log)
    assert call(run, []) == 0
    assert '"hours":3' in capsys.readouterr().out
    assert call(run, ["--help"]) == 0
    assert "PIGEONHOLE_SETTLE_HOURS" in capsys.readouterr().out
    assert call(run, ["log=x"]) == 2


@pytest.mark.parametrize("place", ["nowhere", "a-registry"])
def test_a_folder_that_is_no_log_is_told_and_not_compacted(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-registry" / "models").mkdir(parents=True)
    monkeypatch.setenv("PIGEONHOLE_LOG", str(tmp_path / place))
    assert call(run, []) == 2
    assert "there is no log here" in capsys.readouterr().err
