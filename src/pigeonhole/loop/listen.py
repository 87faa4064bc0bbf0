"""`uv run listen`: takes the drift service's alarms over HTTP and answers each with one `retrain`, one at a time.

Promises: an alarm without a valid signature (or bearer token, as Pub/Sub's push sends it) starts nothing; one that arrives twice
starts one job; while a job runs, further alarms are noted and start none: the next run of the drift service tells again.
"""

import base64
import binascii
import hmac
import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Annotated, Any

import msgspec
import uvicorn
from fastapi import Depends, FastAPI, Request, Response

from pigeonhole.command import command, say, with_help
from pigeonhole.drift.alarm import SIGNATURE, Alarm, is_signed
from pigeonhole.drift.asked import check_host
from pigeonhole.environment import describe_variables, read_variables, variable, whole_number
from pigeonhole.errors import NOT_AS_TYPED, ConfigError
from pigeonhole.loop.processes import script
from pigeonhole.loop.retrain import check_arguments
from pigeonhole.port import bind, is_own, url_of

KEPT_JOBS = 100
BODY_LIMIT_BYTES = 100_000
GRACE_S = 15.0


@dataclass(frozen=True)
class Settings:
    host: str = variable("HOST", "127.0.0.1", "the address to listen at; 0.0.0.0 in a container")
    port: int = variable("PORT", 8082, "the port to listen at", whole_number(1, 65535))
    secret: str = variable("PIGEONHOLE_ALARM_SECRET", "", "the key that alarms are signed with; needed", secret=True)
    retrain: str = variable("PIGEONHOLE_RETRAIN", "", "arguments for `retrain`, as on a command line")


HELP = f"""usage: [VARIABLE=value ...] uv run listen [--help]

Answer the drift service's alarms with `retrain`: POST /alarms, GET /jobs /health.

The environment sets (variable, default, meaning); `retrain` reads the same environment:
{describe_variables(Settings)}
"""


@dataclass
class Job:
    """One `retrain`; `result` is what it printed, None where it ended without."""

    alarm: Alarm
    began: str
    ended: str | None = None
    exit_code: int | None = None
    result: dict[str, Any] | None = None


class Jobs:
    """At most one at a time."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._seen: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def answer(self, alarm: Alarm) -> str:
        """What the alarm did: started a job, is known already, or found one running.

        Raises OSError where no process can be started; the same alarm may then come again.
        """
        with self._lock:
            if alarm.id in self._seen:
                return "known"
            busy = bool(self._jobs) and self._jobs[-1].ended is None
            if not busy:
                self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
            self._seen = [*self._seen[-KEPT_JOBS:], alarm.id]
            if busy:
                return "busy"
            job = Job(alarm, _now())
            self._jobs = [*self._jobs[-KEPT_JOBS:], job]
            threading.Thread(target=self._follow, args=(job, self._process), daemon=True).start()
        say(f"alarm of report {alarm.report}: {shlex.join(self._command)}")
        return "started"

    def _follow(self, job: Job, process: "subprocess.Popen[bytes]") -> None:
        printed, _ = process.communicate()
        with self._lock:
            try:
                job.result = msgspec.json.decode(printed, type=dict[str, Any]) if printed.strip() else None
            except NOT_AS_TYPED:
                job.result = None
            job.exit_code, job.ended = process.returncode, _now()
        say(f"retrain ended with {process.returncode}: {(job.result or {}).get('decision', 'no result')}")

    def listed(self) -> list[dict[str, Any]]:
        with self._lock:
            return [{**vars(job), "alarm": msgspec.to_builtins(job.alarm)} for job in reversed(self._jobs)]

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def create_app(settings: Settings, jobs: Jobs) -> FastAPI:
    # FastAPI's own pages fetch their scripts from a stranger's server; /openapi.json says the same.
    app = FastAPI(title="Pigeonhole: listen", docs_url=None, redoc_url=None)

    @app.post("/alarms")
    def alarms(request: Request, body: Annotated[bytes, Depends(_body)]) -> Response:
        """202 with what the alarm did; 401 without a valid signature or token, 422 for no alarm, 503 where no job starts."""
        if not _is_authentic(settings.secret, request, body):
            return _answer(401, {"detail": f"the body has to be signed ({SIGNATURE}), or sent with the secret as a bearer token"})
        try:
            alarm = read_alarm(body)
        except ValueError as error:
            return _answer(422, {"detail": str(error)})
        try:
            return _answer(202, {"alarm": alarm.id, "did": jobs.answer(alarm)})
        except OSError as error:
            say(f"error: retrain cannot be started: {error}")
            return _answer(503, {"detail": "no job can be started now; send the alarm again"})

    # An alarm has its key, and may come from a name of the internet through a tunnel.
    @app.get("/jobs", dependencies=[Depends(check_host)] if is_own(settings.host) else [])
    def listed() -> Response:
        return _answer(200, {"jobs": jobs.listed()})

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


async def _body(request: Request) -> bytes:
    read = b""
    async for part in request.stream():
        read += part
        if len(read) > BODY_LIMIT_BYTES:
            return b""  # no alarm is so long; an empty body is refused
    return read


def _is_authentic(secret: str, request: Request, body: bytes) -> bool:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if hmac.compare_digest(token.encode(), secret.encode()):
        return True
    return is_signed(secret, body, request.headers.get(SIGNATURE, ""), time.time())


class _Push(msgspec.Struct, frozen=True):
    """Pub/Sub's push: the alarm's JSON in base64."""

    message: dict[str, Any]


def read_alarm(body: bytes) -> Alarm:
    """An alarm as the drift service posts it, or as Pub/Sub pushes it. Raises ValueError."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
        if "message" in found:
            pushed = msgspec.convert(found, _Push).message
            body = base64.b64decode(str(pushed.get("data", "")), validate=True)
        return msgspec.json.decode(body, type=Alarm)
    except (*NOT_AS_TYPED, binascii.Error) as error:
        raise ValueError(f"not an alarm: {error}") from error


def _answer(status: int, body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@with_help(HELP)
def run(arguments: list[str]) -> None:
    if arguments:
        raise ConfigError(f"unexpected argument {arguments[0]!r}: the environment sets it all, see uv run listen --help")
    listen(os.environ)


def listen(environment: Mapping[str, str]) -> None:
    """Until SIGTERM or SIGINT, which a running job gets too. Raises ConfigError before the port is opened."""
    settings = read_variables(Settings, environment)
    if not settings.secret:
        raise ConfigError("PIGEONHOLE_ALARM_SECRET is not set: anybody could start a training; give the drift service the same")
    given = _arguments(settings.retrain)
    jobs = Jobs([script("retrain"), *given])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _ended_well)  # uvicorn raises the signal again when it is done
    config = uvicorn.Config(
        create_app(settings, jobs),
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(GRACE_S),
    )
    with bind(settings.host, settings.port) as listener:
        say(f"listening at {url_of(settings.host, settings.port)} (POST /alarms)")
        try:
            uvicorn.Server(config).run([listener])
        finally:
            jobs.stop()


def _arguments(line: str) -> list[str]:
    """Raises ConfigError for what `retrain` would refuse, at the first alarm."""
    try:
        given = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"PIGEONHOLE_RETRAIN={line!r}: {error}; write it as on a command line") from error
    check_arguments(given)
    return given


def _ended_well(number: int, frame: FrameType | None) -> None:
    """What SIGTERM asks for has been done."""


main = command(run)

if __name__ == "__main__":
    main()
