"""`uv run serve`: find the bundle, open it, answer its golden questions, then listen."""

import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from pigeonhole import storage
from pigeonhole.bundle import Bundle, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import command, say
from pigeonhole.errors import ConfigError, RegistryError
from pigeonhole.prediction_log import Kind, LogWriter
from pigeonhole.registry import Registry
from pigeonhole.serving import journal
from pigeonhole.serving.app import create_app
from pigeonhole.serving.port import bind
from pigeonhole.serving.protocol import Protocol
from pigeonhole.serving.settings import Settings, describe, read_settings, unknown_variables
from pigeonhole.serving.settle import settle
from pigeonhole.serving.workers import become_parent, follow_parent

GRACE_S = 8  # Cloud Run kills ten seconds after SIGTERM; the rest is for the last records
BACKLOG = 2048  # connections that the kernel holds until they are taken
TAKEN_AT_ONCE = 8  # of them: asyncio takes as many as its `backlog` before it looks at anything else, 0.1 ms each
SWITCH_S = 0.0005  # so soon the model's thread gives the interpreter back to the event loop; Python's 5 ms come at each write

logger = logging.getLogger(__name__)

HELP = f"""usage: [VARIABLE=value ...] uv run serve [--workers N] [--help]

Serve a bundle over HTTP: POST /predict /explain /feedback, GET /model /health /ready /metrics /docs /openapi.json.

The environment sets (variable, default, meaning):
{describe()}
"""


def run(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    environment = dict(os.environ)
    match arguments:
        case []:
            pass
        case ["--workers", count]:
            environment["PIGEONHOLE_WORKERS"] = count
        case _:
            raise ConfigError(
                f"unexpected argument {arguments[0]!r}: the environment sets what is served, see uv run serve --help"
            )
    settings = read_settings(environment)
    if settings.workers > 1:
        become_parent(settings.workers)
    journal.begin(settings.stderr)
    serve(settings, environment)


def run_worker(arguments: list[str]) -> None:
    """One of several: the same, on a port that it shares."""
    assert not arguments
    settings = read_settings(os.environ)
    journal.begin(settings.stderr)
    follow_parent()
    serve(settings, os.environ)


def serve(settings: Settings, environment: Mapping[str, str]) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigError, BundleError, RegistryError, StorageError before the port is opened."""
    sys.setswitchinterval(SWITCH_S)
    for name in unknown_variables(environment):
        logger.info("ignored: %s is no variable of serve; see uv run serve --help", name)
    with bind(settings.host, settings.port, shared=settings.workers > 1) as listener:
        bundle = find_bundle(settings)
        storage.exists(settings.log)  # a mistyped scheme or a missing role is told now, not after a day of unshipped records
        with open_log(settings, "predictions") as log, open_log(settings, "feedback") as feedback:
            followed = None if settings.bundle else Registry(settings.registry)
            app = open_app(settings, bundle, log, feedback, followed)
            manifest = bundle.manifest
            address = _address(settings)
            logger.info("serving %s %s at %s (see %s/docs)", manifest.name, manifest.version, address, address)
            if not (settings.keys or settings.oidc_issuer):
                logger.info("open to all who can reach it; `uv run keys --help` and PIGEONHOLE_KEYS close it")
            server = make_server(app)
            settle()
            signal.signal(signal.SIGTERM, functools.partial(_on_sigterm, server))
            server.run(sockets=[listener])


def open_log(settings: Settings, kind: Kind) -> LogWriter:
    return LogWriter(
        settings.log,
        kind,
        spool=settings.spool,
        durability=settings.level,
        max_spool_bytes=settings.spool_mb << 20,
        when_full=settings.spool_full,
        patience_s=settings.deadline_s,
    )


def open_app(settings: Settings, bundle: Bundle, log: LogWriter, feedback: LogWriter, followed: Registry | None) -> Starlette:
    """The app over a bundle whose golden answers came out; it alone holds the model, so that a rollout can let go of it."""
    return create_app(settings, Classifier.open(bundle, threads=settings.threads), log, feedback, followed)


def find_bundle(settings: Settings) -> Bundle:
    """The bundle of PIGEONHOLE_BUNDLE, else the production version of the registry."""
    if settings.bundle:
        return open_bundle(settings.bundle)
    registry = Registry(settings.registry)
    return open_bundle(registry.resolve(settings.model or _model_promoted_last(registry), "production"))


def _model_promoted_last(registry: Registry) -> str:
    states = [registry.alias(name, "production") for name in registry.models()]
    promoted = sorted((state.changed_at, state.name) for state in states if state.version is not None)
    if not promoted:
        raise RegistryError(f"{registry.url}: no model is in production here; run `uv run train experiment=fast` first")
    name = promoted[-1][1]
    if len(promoted) > 1:
        others = ", ".join(sorted(other for _, other in promoted[:-1]))
        say(f"serving {name}, promoted last; set PIGEONHOLE_MODEL for another one ({others})")
    return name


def _address(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


class Server(uvicorn.Server):
    """uvicorn that takes connections a few at a time: a thousand that come at once make no request wait for them all."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)


def make_server(app: Starlette) -> uvicorn.Server:
    """A quiet uvicorn, with our protocol and with an end to its patience."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="asyncio",  # the image has no other; uvloop was no faster here
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        backlog=TAKEN_AT_ONCE,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config)


def _on_sigterm(server: uvicorn.Server, _: int, __: FrameType | None) -> None:
    """Before uvicorn listens to signals, and when it raises again those that it has heard, with all requests answered."""
    if not server.should_exit:
        os._exit(0)  # nothing was answered yet


main = command(run)
work = command(run_worker)
