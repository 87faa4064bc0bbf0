"""A Python with torch loaded that runs programs in forks of itself: a start costs milliseconds, so that tests can kill often."""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType

PATIENCE_S = 180.0


class ForkServer:
    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()

    def start(self, program: Path, log: Path, *arguments: str, **environment: str) -> int:
        """The process id of a fork that runs `program`; what it prints goes to `log`."""
        return self._ask({"program": str(program), "log": str(log), "arguments": arguments, "environment": environment})

    def wait(self, process: int) -> int:
        """0, the number of the signal that ended it, negative, or 1 after an exception."""
        return self._ask({"wait": process})

    def _ask(self, question: dict[str, object]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def _serve() -> None:
    importlib.import_module("tests.training.test_trainer")  # torch and transformers take the seconds
    importlib.import_module("torch._dynamo")  # the optimizer's first step would load it, in every fork: 2 s more
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = _wait(question["wait"])
        else:
            answer = os.fork()
            if answer == 0:
                _run(question)
        print(answer, flush=True)


def _wait(process: int) -> int:
    """What waits for another one that has ended would wait for ever: it is killed."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _run(question: dict[str, object]) -> None:
    os.environ.update(question["environment"])  # type: ignore[call-overload]
    log = os.open(str(question["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [str(question["program"]), *question["arguments"]]  # type: ignore[misc]
    status = 1
    try:
        runpy.run_path(str(question["program"]), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001  a fork never goes back into the server
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
