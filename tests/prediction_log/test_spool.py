import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pigeonhole import storage
from pigeonhole.errors import LogError, StorageError
from pigeonhole.prediction_log.spool import Durability, Spool, spool_folder

LINE = b"0123456789\n"


def test_appended_lines_stand_in_the_segment_at_once_and_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.append([b"a\n", b"b\n"]).records == 2
    assert spool.append([b"c\n"]).records == 3
    (segment,) = spool.all_segments()
    assert segment.name == f"{spool.writer}-00000001.jsonl"
    assert segment.read_bytes() == b"a\nb\nc\n"
    assert spool.closed_segments() == []
    spool.close()


def test_a_rotated_segment_is_closed_and_the_next_has_the_next_number_and_a_count_of_its_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.rotate()
    assert spool.all_segments() == []
    for _ in range(2):
        assert [spool.append([LINE]).records for _ in range(2)] == [1, 2]
        spool.rotate()
        spool.rotate()
    assert [path.name for path in spool.closed_segments()] == [f"{spool.writer}-0000000{number}.jsonl" for number in (1, 2)]
    spool.close()
    assert not list(tmp_path.glob("*.lock"))


def test_a_segment_is_never_taken_for_closed_while_it_is_being_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipper would ship it empty and delete it, and what is then written into it would be gone."""
    spool, closed, looks = Spool(tmp_path), list[Path](), list[threading.Thread]()
    open_file = os.open

    def open_slowly(*arguments: Any) -> int:
        handle = open_file(*arguments)
        looks.append(threading.Thread(target=lambda: closed.extend(spool.closed_segments())))
        looks[0].start()
        looks[0].join(0.2)
        return handle

    with monkeypatch.context() as slow:
        slow.setattr(os, "open", open_slowly)
        spool.append([LINE])
    looks[0].join()
    assert closed == []
    spool.close()


def test_host_durability_syncs_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append, raising=False)
    for durability, expected in (("process", 0), ("host", 2)):
        spool = Spool(tmp_path, durability)  # type: ignore[arg-type]
        spool.append([LINE])
        spool.append([LINE])
        spool.close()
        assert len(synced) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes, not Windows")
def test_a_full_disk_is_an_error_and_leaves_only_whole_lines(tmp_path: Path) -> None:
    """A file size limit makes write(2) short, then fail, as a full disk does."""
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from pigeonhole.errors import LogError
        from pigeonhole.prediction_log.spool import Spool

        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        spool = Spool(Path(sys.argv[1]))
        outcomes = []
        for _ in range(12):
            try:
                spool.append([b"0123456789\\n"])
                outcomes.append("kept")
            except LogError as error:
                outcomes.append(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        spool.append([b"after\\n"])
        print("\\n".join(outcomes))
    """)
    ran = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    outcomes = ran.stdout.splitlines()
    assert outcomes[:9] == ["kept"] * 9
    assert outcomes[9] == f"{tmp_path}: the prediction log cannot be written: 1 of 11 bytes written, the disk is full"
    (segment,) = tmp_path.glob("*.jsonl")
    assert segment.read_bytes() == LINE * 9 + b"after\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes, not Windows")
def test_a_disk_that_is_full_at_any_byte_holds_whole_records_and_all_that_were_acknowledged(tmp_path: Path) -> None:
    """Every byte of two records is the last one once; half of the time what is torn cannot be cut off either."""
    program = textwrap.dedent("""
        import os, resource, sys
        from pathlib import Path
        from pigeonhole.errors import LogError
        from pigeonhole.prediction_log.spool import Spool

        cut = os.ftruncate
        lines = [b"%d%s\\n" % (number, b"x" * 10) for number in range(9)]
        for limit in range(24, 50):
            folder = Path(sys.argv[1]) / str(limit)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            if limit % 2:
                os.ftruncate = lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error"))
            spool, kept = Spool(folder), []
            for line in lines:
                try:
                    spool.append([line])
                    kept.append(line)
                except LogError:  # and then there is room again
                    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.ftruncate = cut
            whole = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines(True)]
            assert kept and [line for line in whole if line in lines] == kept, (limit, whole, kept)
    """)
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)


def test_a_torn_end_that_cannot_be_cut_ends_its_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.append([LINE])

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", refuse)
        broken.setattr(os, "ftruncate", refuse)
        with pytest.raises(LogError, match="Input/output error"):
            spool.append([LINE])
    spool.append([b"next\n"])
    assert [path.read_bytes() for path in spool.all_segments()] == [LINE, b"next\n"]
    spool.close()


def test_a_segment_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    (tmp_path / "spool" / f"{spool.writer}-00000001.jsonl").mkdir()
    with pytest.raises(LogError, match="cannot be written"):
        spool.append([LINE])
    assert spool.append([LINE]).records == 1
    spool.close()


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/spool: the prediction log cannot be written here"):
        Spool(tmp_path / "file" / "spool")


def test_segments_of_the_living_are_left_alone_and_those_of_the_dead_adopted(tmp_path: Path) -> None:
    living, other = Spool(tmp_path), Spool(tmp_path)
    living.append([LINE])
    dead = tmp_path / "00000000deadbeef-00000001.jsonl"
    dead.write_bytes(LINE)
    with other.abandoned_segments() as segments:
        assert segments == [dead]
        with living.abandoned_segments() as again:
            assert again == []
    living.close()
    with other.abandoned_segments() as segments:
        assert [path.name for path in segments] == sorted([dead.name, f"{living.writer}-00000001.jsonl"])
    other.close()


def test_lock_files_of_the_dead_go_after_an_hour(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    old, young = tmp_path / "00.lock", tmp_path / "01.lock"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    os.utime(tmp_path / f"{spool.writer}.lock", (time.time() - 7200,) * 2)
    with spool.abandoned_segments():
        pass
    assert sorted(path.name for path in tmp_path.glob("*.lock")) == sorted([young.name, f"{spool.writer}.lock"])
    spool.close()


def test_the_spool_of_a_local_log_lies_inside_it(tmp_path: Path) -> None:
    assert spool_folder(f"file://{tmp_path}", spool="/elsewhere") == tmp_path / "spool"
    assert spool_folder("log") == Path("log/spool")


def test_the_spool_of_a_remote_log_is_the_given_folder_or_a_private_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert spool_folder("gs://bucket/log", spool=str(tmp_path / "mine")) == tmp_path / "mine"
    one, two = spool_folder("gs://bucket/log"), spool_folder("gs://bucket/other")
    assert one != two
    assert one.parent == two.parent
    assert one.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs user ids, not Windows")
def test_a_temporary_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(StorageError, match="belongs to another user; set PIGEONHOLE_SPOOL"):
        spool_folder("gs://bucket/log")


@pytest.mark.parametrize(("durability", "synced"), [("host", 2), ("process", 0)])
def test_level_host_syncs_the_folder_for_each_new_segment(
    durability: Durability, synced: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(storage, "sync_folder", folders.append)
    spool = Spool(tmp_path, durability)
    for _ in range(2):
        spool.append([LINE])
        spool.append([LINE])
        spool.rotate()
    spool.close()
    assert folders == [tmp_path] * synced
