"""`uv run serve`: find the bundle, open it, answer its golden questions, then listen."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pigeonhole import storage
from pigeonhole.bundle import Bundle, open_bundle, release
from pigeonhole.command import command, with_help
from pigeonhole.environment import describe_variables
from pigeonhole.errors import ConfigError, RegistryError
from pigeonhole.port import bind, url_of
from pigeonhole.prediction_log import Kind, LogWriter
from pigeonhole.registry import Registry
from pigeonhole.serving import journal
from pigeonhole.serving.settings import Settings, read_settings, unknown_variables
from pigeonhole.serving.settle import give_back, settle

if TYPE_CHECKING:
    from pigeonhole.classifier import Classifier

SWITCH_S = 0.0005  # so soon the model's thread gives the interpreter back to the event loop; Python's 5 ms come at each write

logger = logging.getLogger(__name__)

HELP = f"""usage: [VARIABLE=value ...] uv run serve [--workers N] [--help]

Serve a bundle over HTTP: POST /predict /explain /feedback, GET /model /health /ready /metrics /history /docs /openapi.json.

The environment sets (variable, default, meaning):
{describe_variables(Settings)}
"""


@with_help(HELP)
def run(arguments: list[str]) -> None:
    environment = dict(os.environ)
    match arguments:
        case []:
            pass
        case ["--workers", count]:
            environment["PIGEONHOLE_WORKERS"] = count
        case ["--workers"]:
            raise ConfigError("--workers names no number; allowed is --workers N, see uv run serve --help")
        case _:
            raise ConfigError(
                f"unexpected argument {arguments[0]!r}: the environment sets what is served, see uv run serve --help"
            )
    settings = read_settings(environment)
    if settings.workers > 1:
        from pigeonhole.serving.workers import become_parent  # prometheus_client, which a single process loads later

        become_parent(settings.workers)
    journal.begin(settings.stderr)
    with journal.to_the_end(settings.stderr):
        serve(settings, environment)
    _leave()


def run_worker(arguments: list[str]) -> None:
    """One of several: the same, on a port that it shares."""
    assert not arguments
    settings = read_settings(os.environ)
    journal.begin(settings.stderr)
    from pigeonhole.serving.workers import follow_parent

    tell = follow_parent()
    with journal.to_the_end(settings.stderr):
        serve(settings, os.environ, tell)
    _leave()


def serve(settings: Settings, environment: Mapping[str, str], tell: Callable[[], None] = lambda: None) -> None:
    """Until SIGTERM or SIGINT; `tell` is called many times a second while all is well.

    Raises ConfigError, BundleError, RegistryError, StorageError before the port is opened.
    """
    require_closed(settings)
    sys.setswitchinterval(SWITCH_S)
    for name in unknown_variables(environment):
        logger.info("ignored: %s is no variable of serve; see uv run serve --help", name)
    with bind(settings.host, settings.port, shared=settings.workers > 1) as listener:
        opening = _open_beside(settings)
        from pigeonhole.serving import server
        from pigeonhole.serving.app import create_app

        manifest = opening.result().manifest
        storage.exists(settings.log)  # a mistyped scheme or a missing role is told now, not after a day of unshipped records
        with open_log(settings, "predictions") as log, open_log(settings, "feedback") as feedback:
            followed = None if settings.bundle else Registry(settings.registry)
            app = create_app(settings, opening.result(), log, feedback, followed, tell)
            del opening  # the app alone holds the model, so that a rollout can let go of it
            address = url_of(settings.host, settings.port)
            logger.info("serving %s %s at %s (see %s/docs)", manifest.name, manifest.version, address, address)
            if not (settings.keys or settings.oidc_issuer):
                whom = "this machine" if settings.is_own else "all who can reach it"
                logger.info("open to %s; `uv run keys --help` and PIGEONHOLE_KEYS close it", whom)
            settle()
            server.run(app, listener)


def _leave() -> None:
    """At once: a thread may be opening a version, or hang in one.

    The interpreter's end would break it off inside ONNX Runtime, which aborts the process.
    """
    sys.stderr.flush()
    os._exit(0)


def require_closed(settings: Settings) -> None:
    """Raises ConfigError where strangers could ask and nobody said that they may; Vertex AI itself lets in none of them."""
    if not (settings.is_own or settings.keys or settings.oidc_issuer or settings.predict_route or settings.public == "true"):
        raise ConfigError(
            f"HOST={settings.host!r} is reached from other machines: name PIGEONHOLE_KEYS (uv run keys --help) or "
            "PIGEONHOLE_OIDC_ISSUER, or set PIGEONHOLE_PUBLIC=true where whoever reaches it may ask"
        )


def _open_beside(settings: Settings) -> "Future[Classifier]":
    """A classifier whose golden answers will have come out, opened by a thread.

    Hashing a bundle and opening its model need no interpreter, which meanwhile loads numpy and all that serves: half of a start.
    """
    aside = ThreadPoolExecutor(1, "opening")
    verified = aside.submit(find_bundle, settings)
    from pigeonhole.classifier import Classifier

    def opened() -> Classifier:
        bundle = verified.result()
        give_back()  # the peak of a small service is its start
        try:
            return Classifier.open(bundle, threads=settings.threads)
        finally:
            release(bundle)

    opening = aside.submit(opened)
    aside.shutdown(wait=False)
    return opening


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


def find_bundle(settings: Settings) -> Bundle:
    """The bundle of PIGEONHOLE_BUNDLE, else the production version of the registry."""
    if settings.bundle:
        return open_bundle(settings.bundle, "served")
    registry = Registry(settings.registry)
    return open_bundle(registry.resolve(settings.model or _model_promoted_last(registry), "production"), "served")


def _model_promoted_last(registry: Registry) -> str:
    promoted = registry.in_production()
    if not promoted:
        raise RegistryError(f"{registry.url}: no model is in production here; run `uv run train experiment=fast` first")
    name, *others = promoted
    if others:
        logger.info("serving %s, promoted last; set PIGEONHOLE_MODEL for another one (%s)", name, ", ".join(sorted(others)))
    return name


main = command(run)
work = command(run_worker)
