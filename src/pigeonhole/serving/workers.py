"""`serve --workers N`: as many services on one port, which share nothing else, and a parent that starts and replaces them.

Each worker has its own session, queue, spool and event loop; the kernel shares out the connections (SO_REUSEPORT). /metrics of
any of them tells of all: prometheus_client keeps the numbers in files of one folder, so that a killed worker's counts stay.
The parent holds no model and imports none of what serves; a worker that loses its parent stops as if asked to, and one that the
parent hears no more from, after it has begun to serve, is killed and replaced.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from prometheus_client import multiprocess

from pigeonhole.command import command
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.port import bind
from pigeonhole.serving import journal
from pigeonhole.serving.settings import Settings, read_settings

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's name; telemetry.py reads it, and is too heavy for the parent
WORKER = "from pigeonhole.serving.serve import work; work()"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.1
RESTART_S = 1.0  # at least between two starts of a worker
SILENT_S = 30.0  # no turn of an event loop takes so long; a batch that hangs has its minute (batcher.py) before that
PATIENCE_S = 9.5  # from SIGTERM to SIGKILL; Cloud Run has ten

logger = logging.getLogger(__name__)


def become_parent(workers: int) -> NoReturn:
    """Replace this process, which has imported all that serves, by a small one."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError(f"PIGEONHOLE_WORKERS={workers}: processes cannot share a port on this system; use 1")
    os.environ["PIGEONHOLE_WORKERS"] = str(workers)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one that comes now waits until Workers.run knows what to do with it
    os.execv(sys.executable, [sys.executable, "-c", "from pigeonhole.serving.workers import main; main()"])  # noqa: S606


def follow_parent() -> Callable[[], None]:
    """In a worker: end as SIGTERM does when the parent is gone, which holds the other end of stdin.

    Gives what tells the parent that all is well; it never waits.
    """
    parent = socket.socket(fileno=0)  # not sys.stdin, whose lock would be held when the interpreter ends

    def wait() -> None:
        with contextlib.suppress(ConnectionError):  # it went before it had heard all
            parent.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    def tell() -> None:
        with contextlib.suppress(OSError):  # it does not listen now, or is gone
            parent.send(b".", socket.MSG_DONTWAIT)

    threading.Thread(target=wait, name="parent", daemon=True).start()
    return tell


def run(arguments: list[str]) -> None:
    assert not arguments
    settings = read_settings(os.environ)
    journal.begin(settings.stderr)
    with journal.to_the_end(settings.stderr):
        with tempfile.TemporaryDirectory(prefix="pigeonhole-metrics-") as folder:
            code = Workers(settings, {**os.environ, METRICS_FOLDER: folder}, folder).run()
        if code < 0:
            raise RunError(f"the first worker was ended by signal {-code} before it could serve; 9 may be for want of memory")
        if code == RunError.exit_code:
            raise RunError("a worker did not end well; the lines above say why")
    sys.exit(code)


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    line: socket.socket  # to its stdin
    began: float  # time.monotonic()
    silent_s: float = -math.inf  # since it was last heard; it may take as long as it likes before it serves

    def hangs(self) -> bool:
        """Asked every LOOK_S, which is the clock here: while the machine, or all of a container, stood still, nobody asked."""
        try:
            heard = bool(self.line.recv(1 << 16, socket.MSG_DONTWAIT))
        except OSError:
            heard = False
        self.silent_s = 0.0 if heard else self.silent_s + LOOK_S
        return self.silent_s > SILENT_S


class Workers:
    def __init__(self, settings: Settings, environment: Mapping[str, str], metrics_folder: str) -> None:
        self._settings = settings
        self._environment = environment
        self._metrics_folder = metrics_folder
        self._workers: list[_Worker] = []
        self._stop_by: float | None = None  # time.monotonic(), once it was asked to stop

    def run(self) -> int:
        """Until SIGTERM or SIGINT. The exit code: the first worker's where it cannot serve, so that its mistake is told once.

        Below 0 where a signal ended that one, as subprocess has it.
        """
        for number in SIGNALS:
            signal.signal(number, self._stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        bind(self._settings.host, self._settings.port).close()  # refuses a port at which somebody listens
        self._workers.append(self._start())
        while self._stop_by is None and not self._answers():
            if (code := self._workers[0].process.poll()) is not None and self._stop_by is None:
                return code
            time.sleep(LOOK_S)
        while len(self._workers) < self._settings.workers and self._stop_by is None:
            self._workers.append(self._start())
        while self._stop_by is None:
            self._kill_the_hanging()
            self._replace_the_dead()
            time.sleep(LOOK_S)
        return self._end()

    def _start(self) -> _Worker:
        command = [sys.executable, "-c", WORKER]
        # A terminal's Ctrl-C goes to the whole group of processes: here it is the parent alone that tells the workers.
        line, stdin = socket.socketpair()
        with stdin:
            process = subprocess.Popen(command, env=self._environment, stdin=stdin.fileno(), process_group=0)
        return _Worker(process, line, time.monotonic())

    def _answers(self) -> bool:
        host = self._settings.host
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  only compared with
        try:
            socket.create_connection((reachable, self._settings.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _kill_the_hanging(self) -> None:
        for worker in self._workers:
            if worker.hangs():
                logger.error("worker %d has hung for %g s and is killed", worker.process.pid, SILENT_S)
                worker.process.kill()
                worker.silent_s = -math.inf

    def _replace_the_dead(self) -> None:
        for number, worker in enumerate(self._workers):
            code = worker.process.poll()
            if code is None:
                continue
            multiprocess.mark_process_dead(worker.process.pid, self._metrics_folder)  # type: ignore[no-untyped-call]
            if time.monotonic() - worker.began >= RESTART_S:
                logger.error("worker %d ended with %d; a new one is started", worker.process.pid, code)
                worker.line.close()
                self._workers[number] = self._start()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_by = self._stop_by or time.monotonic() + PATIENCE_S
        for worker in self._workers:
            worker.process.terminate()

    def _end(self) -> int:
        """0 where every worker that was alive ended with 0, or of our signal before it knew what to do with it."""
        assert self._stop_by is not None
        codes: list[int] = []
        for worker in self._workers:
            worker.process.terminate()  # one that was being started when we were asked to stop has not heard of it
        for worker in self._workers:
            try:
                codes.append(worker.process.wait(max(0.0, self._stop_by - time.monotonic())))
            except subprocess.TimeoutExpired:
                logger.error("worker %d has not ended within %g s and is killed", worker.process.pid, PATIENCE_S)
                worker.process.kill()
                codes.append(worker.process.wait())
        return 0 if set(codes) <= {0, -signal.SIGTERM} else RunError.exit_code


main = command(run)
