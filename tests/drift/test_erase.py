import gzip
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import gs_at
from tests.drift.conftest import NOON
from tests.drift.test_compact import Killed, deaths, put

from pigeonhole import storage
from pigeonhole.chaos.bucket import Bucket
from pigeonhole.command import call
from pigeonhole.drift.compact import compact_log, compacted_lines
from pigeonhole.drift.erase import erase_before, erase_keys, run
from pigeonhole.drift.settings import Settings
from pigeonhole.errors import RunError
from pigeonhole.prediction_log import Feedback, LogWriter, Record, new_id, read_window
from pigeonhole.prediction_log.record import encode_line

HOUR = timedelta(hours=1)
SECRET = "the parcel of Ms Smith"

RecordsOf = Callable[..., list[Record]]


def word_on(record: Record, at: datetime = NOON) -> Feedback:
    return Feedback(feedback_id=new_id(), at=at, prediction_id=record.prediction_id, label="billing", source="agent")


def everything(log: str) -> bytes:
    """Every byte below the log's folder, as it stands and unpacked."""
    found = b""
    for path in Path(log).rglob("*"):
        if path.is_file():
            found += path.name.encode() + path.read_bytes()
            if path.name.endswith(".gz"):
                found += gzip.decompress(path.read_bytes())
            if path.name.endswith(".parquet"):
                found += repr(pq.read_table(path).to_pydict()).encode()
    return found


def ids_in(log: str) -> list[str]:
    return [record.prediction_id for record in read_window(log, NOON, NOON + 48 * HOUR, read_compacted=compacted_lines)]


@pytest.fixture
def world(settings: Settings, records_of: RecordsOf) -> tuple[str, Record, list[Record]]:
    """A log, the record that has to go, and the others: in a compacted hour, in shipped objects and in a dead writer's spool."""
    marked = records_of(["where is it"], NOON + timedelta(minutes=1), text=SECRET, text_policy="full", request_id="smith-1")[0]
    early = records_of(["one", "two"])
    for number, record in enumerate([marked, *early]):
        put(settings.log, "predictions", record, f"writer-{number}")
    put(settings.log, "feedback", word_on(marked), "writer-0")
    put(settings.log, "feedback", word_on(early[0]), "writer-1")
    compact_log(settings.log, NOON + 5 * HOUR)
    late = records_of(["three", "four"], NOON + HOUR)
    lines = b"".join(map(encode_line, [*late, marked]))
    put(settings.log, "predictions", late[0], "writer-7")
    spool = Path(settings.log) / "spool" / "predictions"
    spool.mkdir(parents=True)
    (spool / "00000000deadbeef-00000001.jsonl").write_bytes(lines + encode_line(marked)[:-9] + b"torn\n")
    put(settings.log, "feedback", word_on(marked, NOON + 30 * HOUR), "writer-9")
    return settings.log, marked, [*early, *late]


@pytest.mark.parametrize("by", ["prediction_id", "request_id"])
def test_no_copy_of_an_erased_record_is_left_and_no_other_record_is_lost(
    by: str, world: tuple[str, Record, list[Record]]
) -> None:
    log, marked, others = world
    assert everything(log).count(SECRET.encode()) >= 3
    tally = erase_keys(log, {getattr(marked, by)})
    left = everything(log)
    for trace in (SECRET, marked.prediction_id, marked.request_id):
        assert trace.encode() not in left
    assert sorted(ids_in(log)) == sorted(record.prediction_id for record in others)
    assert (tally.feedback, tally.unreadable) == (2, [])
    assert tally.records >= 2
    assert len(list(read_window(log, NOON, NOON + 48 * HOUR, "feedback", compacted_lines))) == 1
    assert erase_keys(log, {getattr(marked, by)}).records == 0


@pytest.mark.parametrize("at", range(8))
def test_killed_at_any_point_nothing_else_is_lost_and_the_next_run_ends_it(
    at: int, world: tuple[str, Record, list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, marked, others = world
    with LogWriter(log) as writer:
        writer.flush()  # the spool's part is LogWriter's own, tested there
    with monkeypatch.context() as patched:
        deaths(patched, at)
        with pytest.raises(Killed):
            erase_keys(log, {marked.prediction_id})
    assert set(ids_in(log)) - {marked.prediction_id} == {record.prediction_id for record in others}
    erase_keys(log, {marked.prediction_id})
    assert SECRET.encode() not in everything(log)
    assert sorted(ids_in(log)) == sorted(record.prediction_id for record in others)


def test_what_a_running_server_holds_is_waited_for(settings: Settings, records_of: RecordsOf) -> None:
    with LogWriter(settings.log, interval_s=0.2) as server:
        (marked,) = records_of(["where is it"], text=SECRET)
        server.append([marked])
        assert erase_keys(settings.log, {marked.prediction_id}).records == 1
    assert SECRET.encode() not in everything(settings.log)


def test_a_segment_that_is_shipped_while_it_is_looked_at_is_no_error(
    settings: Settings, records_of: RecordsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LogWriter(settings.log, interval_s=3600) as server:
        (marked,) = records_of(["where is it"], text=SECRET)
        server.append([marked])
        listed, once = Path.glob, [server.flush]

        def ship_meanwhile(folder: Path, pattern: str, **options: Any) -> Iterator[Path]:
            found = list(listed(folder, pattern, **options))
            while once:
                once.pop()()
            return iter(found)

        monkeypatch.setattr(Path, "glob", ship_meanwhile)
        assert erase_keys(settings.log, {marked.prediction_id}).records == 1


def test_a_server_that_cannot_ship_is_an_error(settings: Settings, records_of: RecordsOf) -> None:
    with LogWriter(settings.log, interval_s=3600) as server:
        server.append(records_of(["where is it"]))
        with pytest.raises(RunError, match="a running server still holds records"):
            erase_keys(settings.log, {new_id()}, patience_s=0.2)


def test_an_object_that_nobody_can_read_is_named(world: tuple[str, Record, list[Record]]) -> None:
    log, marked, _ = world
    folder = Path(log) / "predictions" / "date=2026-03-01" / "hour=13"
    (folder / "damaged-00000001.jsonl.gz").write_bytes(b"\x1f\x8b torn")
    (folder / "damaged-00000002.jsonl.gz").write_bytes(b"\x1f\x8b\x08" + bytes(7) + b"\xff no deflate")
    (folder / "damaged-00000003.jsonl.gz").write_bytes(b"no gzip")
    (folder / "compact-0.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(RunError, match="4 objects cannot be read and may hold a copy"):
        erase_keys(log, {marked.prediction_id})
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in folder.glob("*.jsonl"))


def test_a_damaged_line_in_a_compacted_object_is_kept_as_evidence(settings: Settings, records_of: RecordsOf) -> None:
    marked, other = records_of(["one", "two"])
    for number, record in enumerate((marked, other)):
        put(settings.log, "predictions", record, f"writer-{number}")
    compact_log(settings.log, NOON + 5 * HOUR)
    (compacted,) = Path(settings.log).rglob("*.parquet")
    table = pq.read_table(compacted)
    damaged = pa.array([line.as_py() for line in table["line"]] + [b"\xff no JSON"], pa.binary())
    pq.write_table(pa.table({"line": damaged}), compacted)
    assert erase_keys(settings.log, {marked.prediction_id}).records == 1
    window = read_window(settings.log, NOON, NOON + HOUR, read_compacted=compacted_lines)
    assert [record.prediction_id for record in window] == [other.prediction_id]
    assert window.counts.torn == 1
    assert marked.prediction_id.encode() not in everything(settings.log)


def test_an_object_that_does_not_read_back_without_a_record_keeps_its_source(
    settings: Settings, records_of: RecordsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = records_of(["one", "two"])
    with LogWriter(settings.log) as writer:
        writer.append(records)
    monkeypatch.setattr(gzip, "compress", lambda data, mtime, pack=gzip.compress: pack(data[:-9]))
    with pytest.raises(RunError, match="does not read back"):
        erase_keys(settings.log, {records[0].prediction_id})
    assert set(ids_in(settings.log)) == {record.prediction_id for record in records}


def test_what_a_killed_writer_left_beside_its_object_goes(world: tuple[str, Record, list[Record]]) -> None:
    log, marked, _ = world
    folder = Path(log) / "predictions" / "date=2026-03-01" / "hour=12"
    old, young = folder / ".w-1.jsonl.gz.abc.tmp", folder / ".w-2.jsonl.gz.abc.tmp"
    for path in (old, young):
        path.write_bytes(SECRET.encode())
    os.utime(old, (time.time() - 3600,) * 2)
    erase_keys(log, {marked.prediction_id})
    assert (old.exists(), young.exists()) == (False, True)


def test_an_object_from_which_is_erased_again_and_again_keeps_its_name_short(settings: Settings, records_of: RecordsOf) -> None:
    records = records_of(["one", "two", "three"])
    with LogWriter(settings.log) as writer:
        writer.append(records)
    put(settings.log, "feedback", word_on(records[0]), "writer-0")
    tallies = [erase_keys(settings.log, {record.prediction_id}) for record in records[:2]]
    assert [(tally.records, tally.feedback) for tally in tallies] == [(1, 1), (1, 0)]
    (left,) = (name for name in storage.list_files(f"{settings.log}/predictions") if name.endswith(".jsonl.gz"))
    assert left.count("-erased-") == 1
    window = read_window(settings.log, NOON, NOON + HOUR)
    assert ([record.prediction_id for record in window], window.counts.torn) == ([records[2].prediction_id], 0)


def test_days_are_whole_ones_before_today(settings: Settings, records_of: RecordsOf, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    old, kept = (records_of(["one"], now - timedelta(days=days))[0] for days in (4, 3))
    put(settings.log, "predictions", old, "writer-0")
    put(settings.log, "predictions", kept, "writer-1")
    monkeypatch.setenv("PIGEONHOLE_LOG", settings.log)
    assert call(run, ["days=3"]) == 0
    assert [record.prediction_id for record in read_window(settings.log, now - timedelta(days=9), now)] == [kept.prediction_id]


def test_retention_takes_whole_days_and_leaves_the_rest(world: tuple[str, Record, list[Record]]) -> None:
    log, *_ = world
    kept_aside = Path(log) / "predictions" / "aside" / "hour=12" / "mine.jsonl.gz"  # nobody says of which day it is
    kept_aside.parent.mkdir(parents=True)
    kept_aside.touch()
    aside = next((Path(log) / "predictions").glob("date=*/hour=*")) / ".writer-1.jsonl.gz.x1.tmp"
    aside.write_bytes(SECRET.encode())
    os.utime(aside, (0, 0))
    assert erase_before(log, NOON.date()).objects_deleted == 0
    assert not aside.exists()  # what a killed writer left
    tally = erase_before(log, (NOON + timedelta(days=1)).date())
    assert tally.objects_deleted >= 4
    assert kept_aside.exists()
    assert ids_in(log) == []
    assert len(storage.list_files(str(Path(log) / "feedback"))) == 1


def test_the_command_erases_by_id_by_list_and_by_age(
    world: tuple[str, Record, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, marked, others = world
    monkeypatch.setenv("PIGEONHOLE_LOG", log)
    assert call(run, ["--key", marked.prediction_id]) == 0
    assert '"feedback":2' in capsys.readouterr().out
    (tmp_path / "ids").write_text(f"{others[0].prediction_id}\n{others[1].prediction_id}\n")
    assert call(run, [f"keys={tmp_path / 'ids'}"]) == 0
    assert len(ids_in(log)) == 2
    assert call(run, ["--days=30000"]) == 0
    assert len(ids_in(log)) == 2
    assert call(run, [f"before={(NOON + timedelta(days=2)).date()}"]) == 0
    assert ids_in(log) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing is given"),
        (["key=a", "days=3"], "key and days is given"),
        (["key=two words"], "1 of 1 keys are no ids"),
        (["before=yesterday"], "expected a date"),
        (["keys=log-of-bytes"], "is no text in UTF-8"),
        (["key=abc"], "there is no log here"),
        (["days=3"], "there is no log here"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log-of-bytes").write_bytes(b"\xff\xfe\n")
    (tmp_path / "a-registry" / "models").mkdir(parents=True)
    (tmp_path / "log" / "predictions").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIGEONHOLE_LOG", str(tmp_path / ("a-registry" if said.startswith("there is no log") else "log")))
    assert call(run, arguments) == 2
    assert said in capsys.readouterr().err


def test_a_log_in_a_bucket_is_erased_too(tmp_path: Path, records_of: RecordsOf) -> None:
    with Bucket(tmp_path / "bucket") as server, gs_at(server.server_port):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        log, spool = "gs://bucket/log", str(tmp_path / "spool")
        first, marked, late = records_of(["one", "two", "three"], text=SECRET)
        with LogWriter(log, spool=spool) as writer:
            writer.append([msgspec.structs.replace(first, text=None), marked])
        compact_log(log, NOON + 5 * HOUR)
        with LogWriter(log, spool=spool) as writer:
            writer.append([msgspec.structs.replace(late, text=None), marked])
        assert erase_keys(log, {marked.prediction_id}, spool).records == 2
        assert len(ids_in(log)) == 2
        server.shutdown()
    left = [unpack(path) for path in (tmp_path / "bucket").iterdir()]
    assert len(left) == 2
    assert not any(SECRET.encode() in each or marked.prediction_id.encode() in each for each in left)


def unpack(path: Path) -> bytes:
    """What is in an object of the bucket, packed and unpacked."""
    packed = path.read_bytes()
    if packed.startswith(b"PAR1"):
        return packed + repr(pq.read_table(path).to_pydict()).encode()
    return packed + gzip.decompress(packed)
