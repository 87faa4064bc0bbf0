"""What visitors of the service do, for Locust; tests/load/__main__.py starts both. Limits come from the environment."""

import itertools
import os

from locust import HttpUser, between, events, task  # the group `load` alone has it

from pigeonhole.dataset.config import TICKETS, DataConfig
from pigeonhole.dataset.read import read_rows

TEXTS = itertools.cycle([row.text for row in read_rows(DataConfig(path=TICKETS))])
THINK_S = float(os.environ.get("LOAD_THINK_S", "1"))
MAX_P95_MS = float(os.environ.get("LOAD_MAX_P95_MS", "1000"))


class Visitor(HttpUser):  # type: ignore[misc]  # locust is not in the environment that checks types
    wait_time = between(0.5 * THINK_S, 1.5 * THINK_S)

    @task(8)  # type: ignore[untyped-decorator]
    def one_text(self) -> None:
        self.client.post("/predict", json={"text": next(TEXTS)})

    @task(1)  # type: ignore[untyped-decorator]
    def eight_texts(self) -> None:
        self.client.post("/predict", json={"texts": [next(TEXTS) for _ in range(8)]}, name="/predict (8 texts)")

    @task(1)  # type: ignore[untyped-decorator]
    def state(self) -> None:
        self.client.get("/model")


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: object, **_: object) -> None:
    """Exit code 1 where an answer failed, none came, or one in twenty took too long."""
    total = environment.stats.total  # type: ignore[attr-defined]
    p95_ms = total.get_response_time_percentile(0.95) or 0.0
    failed = total.num_requests == 0 or total.num_failures > 0 or p95_ms > MAX_P95_MS
    environment.process_exit_code = 1 if failed else 0  # type: ignore[attr-defined]
