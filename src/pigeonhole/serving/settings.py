"""What the environment says about the service: read once, checked at once, frozen. `uv run serve --help` prints this table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pigeonhole.environment import one_of, read_variables, seconds, share, variable, variables, whole_number
from pigeonhole.errors import ConfigError
from pigeonhole.port import is_own
from pigeonhole.prediction_log import Durability, TextPolicy, WhenFull
from pigeonhole.serving.journal import Form
from pigeonhole.serving.keys import SCOPES


def route(value: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9/_.:-]{1,500}", value):
        raise ValueError("a path such as /predict")
    return value


def scopes(value: str) -> str:
    if set(value.split(",")) - set(SCOPES):
        raise ValueError(f"of {', '.join(SCOPES)}, with commas between them")
    return value


@dataclass(frozen=True)
class Settings:
    """An empty variable counts as one that is not set."""

    host: str = variable("HOST", "127.0.0.1", "the address to listen at; 0.0.0.0 in a container")
    port: int = variable("PORT", 8080, "the port to listen at", whole_number(1, 65535), vertex="AIP_HTTP_PORT")
    bundle: str | None = variable(
        "PIGEONHOLE_BUNDLE", None, "URL of a bundle; else the production version of the registry", vertex="AIP_STORAGE_URI"
    )
    registry: str = variable("PIGEONHOLE_REGISTRY", "registry", "URL of the registry")
    model: str | None = variable("PIGEONHOLE_MODEL", None, "which model of the registry; else the one promoted last")
    poll_s: float = variable(
        "PIGEONHOLE_POLL_S", 3.0, "longest time between two looks at the production alias", seconds(0.05, 3600)
    )
    log: str = variable("PIGEONHOLE_LOG", "log", "URL of the prediction log")
    spool: str | None = variable("PIGEONHOLE_SPOOL", None, "local folder in which records wait for a remote log")
    durability: Durability = variable(  # noqa: RUF009  it makes a field
        "PIGEONHOLE_DURABILITY",
        "process",
        "what a record survives once its answer is out: nothing, the end of the process, of the host (a power cut), of its disk",
        one_of("none", "process", "host", "remote"),
    )
    strict: str = variable(
        "PIGEONHOLE_STRICT", "no", "yes: PIGEONHOLE_DURABILITY is remote, whatever it says", one_of("no", "yes")
    )
    spool_mb: int = variable(
        "PIGEONHOLE_SPOOL_MB", 1024, "how much may wait in the spool while the store takes nothing", whole_number(1, 1_000_000)
    )
    spool_full: WhenFull = variable(  # noqa: RUF009  it makes a field
        "PIGEONHOLE_SPOOL_FULL",
        "shed",
        "what comes then: 503, or answers whose records are dropped and counted",
        one_of("shed", "drop"),
    )
    text_policy: TextPolicy = variable(  # noqa: RUF009  it makes a field
        "PIGEONHOLE_TEXT",
        "full",
        "what the log keeps of a text: all, all but e-mails and long numbers, a keyed hash, nothing",
        one_of("full", "redact", "hash", "none"),
    )
    text_key: str = variable("PIGEONHOLE_TEXT_KEY", "", "the secret key of PIGEONHOLE_TEXT=hash", secret=True)
    sample: float = variable("PIGEONHOLE_SAMPLE", 1.0, "share of the predictions that the log keeps, evenly drawn", share(0, 1))
    threads: int = variable("PIGEONHOLE_THREADS", 1, "cores for one forward pass", whole_number(1, 256))
    max_waiting: int = variable("PIGEONHOLE_MAX_WAITING", 1024, "texts that may wait; beyond: 503", whole_number(256, 1_000_000))
    deadline_s: float = variable("PIGEONHOLE_DEADLINE_S", 10.0, "longest wait for an answer; beyond: 503", seconds(0.1, 300))
    keys: str | None = variable(
        "PIGEONHOLE_KEYS", None, "URL of the list of API keys (uv run keys); without it the service is for this machine alone"
    )
    public: Literal["false", "true"] = variable(
        "PIGEONHOLE_PUBLIC",
        "false",
        "true: whoever reaches the service may ask, without a key, from other machines too",
        one_of("false", "true"),
    )
    predict_route: str | None = variable("AIP_PREDICT_ROUTE", None, "one more path of /predict, as Vertex AI sets it", route)
    health_route: str | None = variable("AIP_HEALTH_ROUTE", None, "one more path of /ready, as Vertex AI sets it", route)
    stderr: Form = variable(  # noqa: RUF009  it makes a field
        "PIGEONHOLE_STDERR", "text", "what stderr gets: text, or json with a line a request", one_of("text", "json")
    )
    traces: Literal["off", "otlp"] = variable(
        "PIGEONHOLE_TRACES", "off", "off, or otlp: OpenTelemetry spans, as the OTEL_* variables say", one_of("off", "otlp")
    )
    workers: int = variable(
        "PIGEONHOLE_WORKERS", 1, "processes that share the port, each with a model and a spool of its own", whole_number(1, 64)
    )
    canary_share: float = variable(
        "PIGEONHOLE_CANARY_SHARE",
        0.0,
        "part of the questions that the candidate alias answers, by X-Canary-Key",
        share(0, 0.5),
    )

    @property
    def level(self) -> Durability:
        return "remote" if self.strict == "yes" else self.durability

    @property
    def is_private(self) -> bool:
        """Whether this machine alone reaches it, and nobody said that others may."""
        return self.is_own and self.public == "false"

    @property
    def is_own(self) -> bool:
        """Whether this machine alone reaches it."""
        return is_own(self.host)

    oidc_issuer: str | None = variable(
        "PIGEONHOLE_OIDC_ISSUER", None, "whose ID tokens open the service too, such as https://accounts.google.com"
    )
    oidc_audience: str = variable("PIGEONHOLE_OIDC_AUDIENCE", "", "what such a token has to be made out for: this service's URL")
    oidc_allowed: str = variable(
        "PIGEONHOLE_OIDC_ALLOWED", "", "who is let in: e-mail addresses, subjects or *@domain, with commas between them"
    )
    oidc_scopes: str = variable(
        "PIGEONHOLE_OIDC_SCOPES", "predict,feedback", "what they may: of predict, feedback, metrics", scopes
    )
    oidc_rate: int = variable("PIGEONHOLE_OIDC_RATE", 10, "requests a second of each of them", whole_number(1, 99999))


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises ConfigError naming the variable, its value and what is allowed."""
    settings = read_variables(Settings, environment)
    if settings.text_policy == "hash" and not settings.text_key:
        raise ConfigError(
            "PIGEONHOLE_TEXT=hash needs a secret in PIGEONHOLE_TEXT_KEY; without one a short text can be guessed back"
        )
    if settings.oidc_issuer and not (settings.oidc_audience and settings.oidc_allowed):
        raise ConfigError(
            "PIGEONHOLE_OIDC_ISSUER needs PIGEONHOLE_OIDC_AUDIENCE and PIGEONHOLE_OIDC_ALLOWED: an issuer signs for everybody"
        )
    return settings


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like ours and that the service does not read: typing errors, mostly."""
    known = {found.name for _, found in variables(Settings)} | {"PIGEONHOLE_TRACEBACK"}
    return sorted(name for name in environment if name.startswith("PIGEONHOLE_") and name not in known)
