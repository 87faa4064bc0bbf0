"""What the environment says about the drift service. `uv run drift --help` prints this table."""

from dataclasses import dataclass

from pigeonhole.drift.alarm import alarm_url
from pigeonhole.drift.detectors import MIN_ROWS
from pigeonhole.environment import one_of, share, variable, whole_number

AUDIT_SHARE = 0.02


@dataclass(frozen=True)
class Settings:
    """An empty variable counts as one that is not set."""

    host: str = variable("HOST", "127.0.0.1", "the address to listen at; 0.0.0.0 in a container")
    port: int = variable("PORT", 8081, "the port to listen at", whole_number(1, 65535))
    bundle: str | None = variable("PIGEONHOLE_BUNDLE", None, "URL of a bundle; else the production version of the registry")
    registry: str = variable("PIGEONHOLE_REGISTRY", "registry", "URL of the registry")
    model: str | None = variable("PIGEONHOLE_MODEL", None, "which model of the registry; else the one promoted last")
    log: str = variable("PIGEONHOLE_LOG", "log", "URL of the prediction log")
    reports: str = variable("PIGEONHOLE_REPORTS", "drift-reports", "URL where the reports are kept")
    window_hours: int = variable("PIGEONHOLE_WINDOW_HOURS", 24, "what a run reads when it is not told", whole_number(1, 8760))
    budget: float = variable(
        "PIGEONHOLE_ALARM_BUDGET", 0.01, "share of runs that may alarm though nothing has changed", share(0.002, 0.5)
    )
    min_rows: int = variable("PIGEONHOLE_MIN_ROWS", MIN_ROWS, "fewer rows get no verdict", whole_number(2, 10_000))
    audit_share: float = variable(
        "PIGEONHOLE_AUDIT_SHARE", AUDIT_SHARE, "least chance of a prediction to come into the review queue", share(0.0001, 1)
    )
    alarm_url: str | None = variable(
        "PIGEONHOLE_ALARM_URL", None, "who is told of drift: http(s)://… or pubsub://projects/PROJECT/topics/TOPIC", alarm_url
    )
    alarm_secret: str = variable("PIGEONHOLE_ALARM_SECRET", "", "the key that a webhook's body is signed with", secret=True)
    draw: str = variable("PIGEONHOLE_DRAW", "yes", "let Evidently draw each report (10 to 25 s)", one_of("yes", "no"))
