import os
import sys
import threading
import time
import tracemalloc
from contextlib import nullcontext
from mmap import mmap
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import wait_until
from tests.training.test_trainer import run, stop_at

from pigeonhole import storage
from pigeonhole.errors import StoppedError, StorageError
from pigeonhole.training import train, trainer, worker
from pigeonhole.training.carry import Carrier

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a mapped file that is replaced, not Windows")
NAMES = (trainer.BEST, trainer.PROGRESS)


def test_a_run_whose_machine_was_taken_away_goes_on_on_another_to_the_same_weights(tmp_path: Path, bucket: str) -> None:
    undisturbed, first, second = tmp_path / "undisturbed", tmp_path / "first", tmp_path / "second"
    for folder in (undisturbed, first, second):
        folder.mkdir()
    run(undisturbed)
    url = storage.join(bucket, tmp_path.name)
    with pytest.raises(StoppedError), Carrier(first, url, NAMES):
        run(first, at=stop_at(8))
    carrier = Carrier(second, url, NAMES)
    assert carrier.fetch()
    assert (second / trainer.PROGRESS).read_bytes() == (first / trainer.PROGRESS).read_bytes()
    with carrier:
        run(second)
    expected, found = load_file(undisturbed / trainer.BEST), load_file(second / trainer.BEST)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_first_machine_finds_nothing_and_what_did_not_change_is_not_sent_again(tmp_path: Path, bucket: str) -> None:
    url = storage.join(bucket, tmp_path.name)
    carrier = Carrier(tmp_path, url, ("a", "b"))
    assert not carrier.fetch()
    (tmp_path / "a").write_bytes(b"one")
    carrier.send()
    version = storage.read_versioned(storage.join(url, "a"))[1]
    carrier.send()
    assert storage.read_versioned(storage.join(url, "a")) == (b"one", version)


def test_a_copy_never_speaks_of_what_is_not_there_though_the_run_writes_while_it_is_sent(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(bucket, tmp_path.name)
    for name in ("weights", "progress"):
        (tmp_path / name).write_bytes(b"epoch 1")
    write = storage.write

    def write_while_the_run_ends_an_epoch(to: str, data: bytes) -> None:
        write(to, data)
        for name in ("weights", "progress"):
            write(str(tmp_path / name), b"epoch 2!")

    monkeypatch.setattr(storage, "write", write_while_the_run_ends_an_epoch)
    carrier = Carrier(tmp_path, url, ("weights", "progress"))
    carrier.send()
    assert [storage.read(storage.join(url, name)) for name in ("weights", "progress")] == [b"epoch 1"] * 2
    carrier.send()
    assert [storage.read(storage.join(url, name)) for name in ("weights", "progress")] == [b"epoch 2!"] * 2


def test_what_is_written_anew_between_two_files_is_never_a_progress_that_is_ahead_of_its_weights(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(bucket, tmp_path.name)
    for name in ("weights", "progress"):
        (tmp_path / name).write_bytes(b"epoch 1")
    open_file = Path.open

    def end_an_epoch_after_it(path: Path, mode: str) -> IO[Any]:
        stream = open_file(path, mode)
        for name in ("weights", "progress"):
            storage.write(str(tmp_path / name), b"epoch 2!")
        return stream

    with monkeypatch.context() as context:
        context.setattr(Path, "open", end_an_epoch_after_it)
        Carrier(tmp_path, url, ("weights", "progress")).send()
    assert [storage.read(storage.join(url, name)) for name in ("weights", "progress")] == [b"epoch 2!", b"epoch 1"]


def test_the_progress_goes_last_and_is_sent_again_though_it_is_as_large_as_before(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, write = storage.join(bucket, tmp_path.name), storage.write
    sent: list[tuple[str, bytes]] = []

    def note(to: str, data: bytes) -> None:
        sent.append((Path(to).name, data[:]))
        write(to, data)

    monkeypatch.setattr(storage, "write", note)
    carrier = Carrier(tmp_path, url, ("weights", "progress"))
    for turn in range(2):
        for name in ("weights", "progress"):
            (tmp_path / name).write_bytes(b"epoch %d" % turn)
            os.utime(tmp_path / name, (turn, turn))
        carrier.send()
    assert sent == [(name, b"epoch %d" % turn) for turn in range(2) for name in ("weights", "progress")]


def test_neither_what_is_sent_nor_what_is_fetched_is_ever_whole_in_memory(tmp_path: Path) -> None:
    size, url = 32 << 20, str(tmp_path / "bucket")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    with (first / "weights").open("wb") as stream:
        stream.truncate(size)
    tracemalloc.start()
    try:
        Carrier(first, url, ("weights",)).send()
        assert Carrier(second, url, ("weights",)).fetch()
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()
    assert [path.name for path in second.iterdir()] == ["weights"]
    assert (second / "weights").stat().st_size == size


def test_what_was_fetched_is_not_sent_back(tmp_path: Path, bucket: str) -> None:
    url = storage.join(bucket, tmp_path.name)
    storage.write(storage.join(url, "a"), b"one")
    version = storage.read_versioned(storage.join(url, "a"))[1]
    with Carrier(tmp_path, url, ("a",)) as carrier:
        assert carrier.fetch()
    assert storage.read_versioned(storage.join(url, "a")) == (b"one", version)


def test_it_is_carried_while_the_run_goes_on(tmp_path: Path, bucket: str) -> None:
    url = storage.join(bucket, tmp_path.name)
    with Carrier(tmp_path, url, ("a",), every_s=0.01):
        (tmp_path / "a").write_bytes(b"one")
        wait_until(lambda: storage.exists(storage.join(url, "a")))


def test_what_is_sent_at_the_end_waits_for_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"one")
    began, sent = threading.Event(), []

    def take_long(url: str, data: mmap) -> None:
        found = data[:]
        began.set()
        time.sleep(0.2 if found == b"one" else 0)
        sent.append(found)

    monkeypatch.setattr(storage, "write", take_long)
    with Carrier(tmp_path, "gs://bucket/x", ("a",), every_s=0.001):
        assert began.wait(60)
        (tmp_path / "b").write_bytes(b"two")
        (tmp_path / "b").replace(tmp_path / "a")
    assert sent == [b"one", b"two"]


def test_a_bucket_that_says_no_for_a_while_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def refuse(url: str, data: bytes) -> None:
        tries.append(url)
        if len(tries) < 3:
            raise StorageError("no role for you")

    monkeypatch.setattr(storage, "write", refuse)
    (tmp_path / "a").write_bytes(b"one")
    with Carrier(tmp_path, "gs://bucket/x", ("a",), every_s=0.001):
        wait_until(lambda: len(tries) >= 3)
    assert capsys.readouterr().err.count("the checkpoint was not carried: no role for you") == 2


@pytest.mark.parametrize("failure", [None, StoppedError("at step 3")])
def test_a_bucket_that_says_no_at_the_end_changes_nothing_of_what_the_run_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: StoppedError | None
) -> None:
    def refuse(url: str, data: bytes) -> None:
        raise StorageError("no role for you")

    monkeypatch.setattr(storage, "write", refuse)
    (tmp_path / "a").write_bytes(b"one")
    with pytest.raises(StoppedError) if failure else nullcontext(), Carrier(tmp_path, "gs://bucket/x", ("a",)):
        if failure:
            raise failure
    assert "the checkpoint was not carried: no role for you" in capsys.readouterr().err


def test_the_worker_carries_where_vertex_says_and_only_there(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def run(arguments: list[str]) -> dict[str, str]:
        seen.append(arguments)
        folder = Path("run/checkpoint")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / trainer.PROGRESS).write_bytes(b"progress")
        return {"run": "run"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "run", run)
    url = storage.join(bucket, "jobs", tmp_path.name)
    assert worker.train_carried(["seed=1"], "", "77") == {"run": "run"}
    assert not storage.exists(storage.join(url, "77", trainer.PROGRESS))
    worker.train_carried(["seed=1"], url, "77")
    assert seen == [["seed=1"], ["seed=1", "out=run"]]
    assert storage.read(storage.join(url, "77", trainer.PROGRESS)) == b"progress"
    worker.train_carried([f"out=file://{tmp_path}/run"], url, "78")
    assert storage.read(storage.join(url, "78", trainer.PROGRESS)) == b"progress"
    assert os.environ.get(worker.CHECKPOINTS) is None
