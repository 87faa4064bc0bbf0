"""Two real workers on one port."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from filelock import FileLock
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import wait_until
from tests.serving.test_serve import records, wait_for_child

from pigeonhole.port import free_port
from pigeonhole.serving.settings import read_settings
from pigeonhole.serving.workers import LOOK_S, PATIENCE_S, RESTART_S, Workers, _Worker

PROGRAM = "from pigeonhole.serving.serve import main; main()"


class Pool:
    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, times: int) -> None:
        """On a connection each, so that the kernel shares them out."""
        for _ in range(times):
            assert httpx.post(f"{self.url}/predict", json={"text": "where is my parcel"}).status_code == 200

    def workers(self) -> list[int]:
        return [int(child) for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    def metric(self, sample: str, **labels: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        found = [each for family in text_string_to_metric_families(text) for each in family.samples]
        return sum(each.value for each in found if each.name == sample and labels.items() <= each.labels.items())

    def wait_for(self, workers: int) -> None:
        wait_until(lambda: self.metric("pigeonhole_processes") >= workers)


@contextlib.contextmanager
def pool(bundle: Path, folder: Path) -> Iterator[Pool]:
    port = free_port()
    environment = {"PORT": str(port), "PIGEONHOLE_BUNDLE": str(bundle), "PIGEONHOLE_LOG": str(folder / "log")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--workers", "2"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
    )
    with process:
        try:
            found = Pool(process, port)
            while True:
                assert process.poll() is None, process.communicate()
                with contextlib.suppress(httpx.TransportError):
                    found.wait_for(2)
                    break
                time.sleep(0.05)
            yield found
        finally:
            process.terminate()
            process.wait(20)


def one_worker(bundle: Path, folder: Path) -> Workers:
    """Of which none is started yet."""
    environment = {"PORT": str(free_port()), "PIGEONHOLE_BUNDLE": str(bundle), "PIGEONHOLE_LOG": str(folder / "log")}
    return Workers(read_settings(environment), {**os.environ, **environment}, str(folder))


def close(pool: Workers) -> None:
    for worker in pool._workers:
        worker.line.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_workers_share_the_port_and_their_metrics_and_a_dead_one_is_replaced(words_bundle: Path, tmp_path: Path) -> None:
    with pool(words_bundle, tmp_path) as running:
        first, second = running.workers()
        running.ask(30)
        for _ in range(4):  # whoever is asked
            assert running.metric("pigeonhole_requests_total", route="/predict", code="200") == 30
        assert running.metric("pigeonhole_waiting_texts") == 0
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: first not in running.workers() and len(running.workers()) >= 2)
        running.wait_for(2)
        assert second in running.workers()
        running.ask(10)
        assert running.metric("pigeonhole_requests_total", route="/predict", code="200") == 40
        for _ in range(4):
            (told,) = httpx.get(f"{running.url}/history?hours=1&steps=1").json()["steps"]
            assert told["answered"] == 40
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
    assert len({record.prediction_id for record in records(tmp_path / "log")}) == 40


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_records_given_up_are_those_of_all_workers_whoever_is_asked(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "log" / "spool" / "predictions"
    spool.mkdir(parents=True)
    (spool / "another-00000001.jsonl").write_bytes(b"x" * (1 << 20))
    monkeypatch.setenv("PIGEONHOLE_SPOOL_MB", "1")
    monkeypatch.setenv("PIGEONHOLE_SPOOL_FULL", "drop")
    with FileLock(spool / "another.lock"), pool(words_bundle, tmp_path) as running:  # a writer that lives
        running.ask(20)
        assert {running.metric("pigeonhole_log_dropped_total") for _ in range(8)} == {20}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_a_worker_that_was_started_while_the_end_was_told_is_told_too(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = one_worker(words_bundle, tmp_path)
    start = pool._start

    def start_as_the_signal_comes() -> _Worker:
        worker = start()
        if pool._workers:
            pool._stop(signal.SIGTERM, None)
        return worker

    monkeypatch.setattr(pool, "_start", start_as_the_signal_comes)
    monkeypatch.setattr(pool, "_settings", dataclasses.replace(pool._settings, workers=2))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    began = time.monotonic()
    assert pool.run() == 0
    assert time.monotonic() - began < PATIENCE_S
    close(pool)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_what_cannot_be_served_is_told_once(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--workers", "2"],
        env={**os.environ, "PORT": str(free_port()), "PIGEONHOLE_BUNDLE": "nowhere"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("manifest.json is missing") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections, and /proc")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_sigterm_while_the_workers_start_ends_all_with_0(words_bundle: Path, tmp_path: Path, workers: int) -> None:
    environment = {"PORT": str(free_port()), "PIGEONHOLE_BUNDLE": str(words_bundle), "PIGEONHOLE_LOG": str(tmp_path / "log")}
    command = [sys.executable, "-c", PROGRAM, "--workers", "3"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        while len(wait_for_child(process.pid).split()) < workers:
            assert process.poll() is None
            time.sleep(0.001)
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert (process.returncode, b"error:" in said) == (0, False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections, and /proc")
def test_sigterm_while_the_parent_loads_ends_it_with_0(words_bundle: Path, tmp_path: Path) -> None:
    environment = {"PORT": str(free_port()), "PIGEONHOLE_BUNDLE": str(words_bundle), "PIGEONHOLE_LOG": str(tmp_path / "log")}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, "--workers", "2"], env={**os.environ, **environment}) as process:
        while b"serving.workers" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_ctrl_c_which_a_terminal_sends_to_all_processes_ends_them_with_0(words_bundle: Path, tmp_path: Path) -> None:
    with pool(words_bundle, tmp_path) as running:
        workers = running.workers()
        os.killpg(running.process.pid, signal.SIGINT)
        _, said = running.process.communicate(timeout=20)
        assert (running.process.returncode, "error:" in said, "Traceback" in said) == (0, False, False)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections, and /proc")
def test_a_first_worker_that_is_killed_before_it_serves_is_told(words_bundle: Path, tmp_path: Path) -> None:
    environment = {"PORT": str(free_port()), "PIGEONHOLE_BUNDLE": str(words_bundle), "PIGEONHOLE_LOG": str(tmp_path / "log")}
    command = [sys.executable, "-c", PROGRAM, "--workers", "2"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as process:
        os.kill(int(wait_for_child(process.pid)), signal.SIGKILL)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "error: the first worker was ended by signal 9 before it could serve" in said


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_a_worker_that_does_not_end_in_time_is_killed_and_named(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pigeonhole.serving.workers.PATIENCE_S", 0.2)
    monkeypatch.setattr("pigeonhole.serving.workers.WORKER", "import time; time.sleep(60)")
    pool = one_worker(words_bundle, tmp_path)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a process inherits
    worker = pool._start()
    signal.signal(signal.SIGTERM, before)
    pool._workers.append(worker)
    pool._stop(signal.SIGTERM, None)
    assert pool._end() == 3
    assert f"worker {worker.process.pid} has not ended within 0.2 s and is killed" in caplog.text
    close(pool)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_a_worker_that_ends_at_once_is_counted_out_and_started_again_after_a_pause(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pigeonhole.serving.workers.WORKER", "pass")
    pool = one_worker(words_bundle, tmp_path)
    first = pool._start()
    pool._workers.append(first)
    first.process.wait()
    gauge = tmp_path / f"gauge_livesum_{first.process.pid}.db"
    gauge.touch()
    pool._replace_the_dead()
    assert not gauge.exists()
    assert pool._workers == [first]
    first.began -= RESTART_S
    pool._replace_the_dead()
    assert pool._workers[0].process.pid != first.process.pid
    pool._workers[0].process.wait()
    close(pool)


def lives(process: int) -> bool:
    """An orphan that has ended may wait for ever to be told of."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def look(pool: Workers) -> None:
    """As `run` does every LOOK_S."""
    pool._kill_the_hanging()
    pool._replace_the_dead()
    time.sleep(LOOK_S)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_a_worker_that_hangs_is_killed_and_replaced(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = one_worker(words_bundle, tmp_path)
    first = pool._start()
    pool._workers.append(first)
    until = time.monotonic() + 30
    while first.silent_s < 0:
        assert time.monotonic() < until
        look(pool)
    look(pool)
    while first.silent_s > 0:  # it is heard again and again
        assert time.monotonic() < until
        look(pool)
    monkeypatch.setattr("pigeonhole.serving.workers.SILENT_S", 0.5)
    os.kill(first.process.pid, signal.SIGSTOP)
    while pool._workers == [first]:
        assert time.monotonic() < until
        look(pool)
    assert caplog.messages == [
        f"worker {first.process.pid} has hung for 0.5 s and is killed",
        f"worker {first.process.pid} ended with -9; a new one is started",
    ]
    pool._stop(signal.SIGTERM, None)
    assert pool._end() == 0
    close(pool)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections")
def test_a_worker_that_takes_long_to_begin_is_waited_for(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pigeonhole.serving.workers.WORKER", "import time; time.sleep(60)")
    monkeypatch.setattr("pigeonhole.serving.workers.SILENT_S", 0.0)
    pool = one_worker(words_bundle, tmp_path)
    worker = pool._start()
    pool._workers.append(worker)
    for _ in range(3):
        look(pool)
    assert pool._workers == [worker]
    assert worker.process.poll() is None
    worker.process.kill()
    worker.process.wait()
    close(pool)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel shares out the connections, and /proc")
def test_workers_end_with_a_parent_that_is_killed_whatever_it_has_not_heard(words_bundle: Path, tmp_path: Path) -> None:
    with pool(words_bundle, tmp_path) as running:
        workers = running.workers()
        os.kill(running.process.pid, signal.SIGSTOP)
        running.ask(10)  # which takes longer than a beat
        os.kill(running.process.pid, signal.SIGKILL)
        until = time.monotonic() + 20
        while any(map(lives, workers)):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert len({record.prediction_id for record in records(tmp_path / "log")}) == 10
