"""What the service says about itself to Prometheus. Label values come from closed sets only: no user text, no path, no id."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from pigeonhole.bundle import Manifest
from pigeonhole.classifier import Prediction
from pigeonhole.prediction_log import Backlog
from pigeonhole.registry import ALIASES, Alias
from pigeonhole.serving.history import History
from pigeonhole.serving.shadow import OUTCOMES, Outcome

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's name for where workers keep their numbers

# A MiniLM answers in 2 to 10 ms a text; the deadline is 10 s.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
SCORES = tuple(step / 20 for step in range(1, 21))
TEXTS = (1, 2, 4, 8, 16, 32)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
STALLS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
FEEDBACK = ("new", "repeated", "changed", "late", "unknown_label", "unknown_prediction")  # a late one is new or changed too
ROLLOUTS = ("swapped", "refused", "unreachable")


class Telemetry:
    """One set of metrics, in a registry of its own, so that two services in one process do not meet."""

    def __init__(self, manifest: Manifest, backlog: Callable[[], Backlog]) -> None:
        registry = self._registry = CollectorRegistry()
        self.history = History(os.environ.get(METRICS_FOLDER))
        self.in_flight = Gauge("pigeonhole_in_flight", "Requests being answered", registry=registry, multiprocess_mode="livesum")
        self._requests = Counter("pigeonhole_requests", "Answers by route and status", ["route", "code"], registry=registry)
        self._request_seconds = Histogram(
            "pigeonhole_request_seconds", "From head to answer", ["route"], buckets=SECONDS, registry=registry
        )
        self._of = functools.cache(self._children)
        self._model_seconds = Histogram("pigeonhole_model_seconds", "One batch in the model", buckets=SECONDS, registry=registry)
        self._queue_seconds = Histogram(
            "pigeonhole_queue_seconds", "A text's wait before its batch began", buckets=SECONDS, registry=registry
        )
        self._batch_tokens = Histogram("pigeonhole_batch_tokens", "Tokens in a batch", buckets=TOKENS, registry=registry)
        self._batch_texts = Histogram("pigeonhole_batch_texts", "Texts in a batch", buckets=TEXTS, registry=registry)
        self._predictions = Counter("pigeonhole_predictions", "Predictions by label", ["label"], registry=registry)
        self._predicted_as = functools.cache(self._predictions.labels)  # its own look takes longer than to count
        self._scores = Histogram("pigeonhole_score", "Calibrated scores of the labels given", buckets=SCORES, registry=registry)
        self._shed = Counter("pigeonhole_shed", "Requests refused because too many texts were waiting", registry=registry)
        self.stall = Histogram(
            "pigeonhole_event_loop_stall_seconds", "How late a timer rang", buckets=STALLS, registry=registry
        ).observe
        self.waiting = Gauge(
            "pigeonhole_waiting_texts", "Texts in the queue before the model", registry=registry, multiprocess_mode="livesum"
        )
        self.feedback = Counter("pigeonhole_feedback", "True labels written down", ["label"], registry=registry)
        self.feedback_outcomes = Counter(
            "pigeonhole_feedback_outcomes", "Words on predictions, by what became of them", ["outcome"], registry=registry
        )
        self.worker_deaths = Counter("pigeonhole_worker_deaths", "Deaths of the batcher's worker", registry=registry)
        self.model_failures = Counter("pigeonhole_model_failures", "Batches with logits that are no numbers", registry=registry)
        self._model = Gauge(
            "pigeonhole_model_info",
            "The models here",
            ["role", "model", "version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._seen: dict[Alias, set[tuple[str, str]]] = {alias: set() for alias in ALIASES}
        workers = Gauge("pigeonhole_processes", "Processes that answer", registry=registry, multiprocess_mode="livesum")
        workers.set(1)
        self._answered = Counter("pigeonhole_answered", "Texts answered, by the model's role", ["role"], registry=registry)
        self._shadow_texts = Counter("pigeonhole_shadow_texts", "Texts for the shadow", ["outcome"], registry=registry)
        self.shadow_difference = Histogram(
            "pigeonhole_shadow_score_difference", "Of the shadow's score from the given one", buckets=SCORES, registry=registry
        ).observe
        self.rollouts = Counter("pigeonhole_rollouts", "Versions met by the rollout", ["alias", "outcome"], registry=registry)
        self.behind = Gauge(
            "pigeonhole_rollout_behind",
            "1 while the alias means a version that is not here",
            ["alias"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        for alias in ALIASES:
            self.behind.labels(alias)
            for rollout in ROLLOUTS:
                self.rollouts.labels(alias, rollout)
        for outcome in OUTCOMES:
            self._shadow_texts.labels(outcome)
        for word in FEEDBACK:
            self.feedback_outcomes.labels(word)
        self.dropped = Counter("pigeonhole_log_dropped", "Records given up, as the settings allow", registry=registry).inc
        self.model("production", manifest)
        self._backlog = _BacklogCollector(backlog)
        registry.register(self._backlog)
        ProcessCollector(registry=registry)

    def model(self, role: Alias, manifest: Manifest | None) -> None:
        """Who is in this role from now on."""
        for name, version in self._seen[role]:
            self._model.labels(role, name, version).set(0)
            if METRICS_FOLDER not in os.environ:
                self._model.remove(role, name, version)  # the files of several workers cannot forget a label
        if METRICS_FOLDER not in os.environ:
            self._seen[role].clear()
        if manifest is None:
            return
        self._seen[role].add((manifest.name, manifest.version))
        self._model.labels(role, manifest.name, manifest.version).set(1)
        for label in manifest.labels:
            self.feedback.labels(label)
            self._predicted_as(label)  # a label never predicted is a 0, not a gap

    def request(self, method: str, route: str, status: int, seconds: float, overloaded: bool = False) -> None:
        answers, latencies = self._of(route, status)
        answers.inc()
        latencies.observe(seconds)
        if overloaded:
            self._shed.inc()
        if method == "POST":
            self.history.count(status, overloaded)

    def turned_away(self) -> None:
        """At the door."""
        self._shed.inc()
        self._of("/predict", 503)[0].inc()
        self.history.count(503, overloaded=True)

    def _children(self, route: str, status: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(route, str(status)), self._request_seconds.labels(route)

    def waited(self, seconds: float) -> None:
        self._queue_seconds.observe(seconds)

    def batch(self, predictions: Sequence[Prediction], model_seconds: float) -> None:
        self._model_seconds.observe(model_seconds)
        self._batch_texts.observe(len(predictions))
        self._batch_tokens.observe(sum(prediction.n_tokens for prediction in predictions))

    def shadowed(self, outcome: Outcome, texts: int) -> None:
        self._shadow_texts.labels(outcome).inc(texts)

    def predicted(self, role: Alias, predictions: Sequence[Prediction]) -> None:
        self._answered.labels(role).inc(len(predictions))
        for prediction in predictions:
            for label in prediction.labels:
                self._predicted_as(label).inc()
            self._scores.observe(prediction.score)

    def exposition(self) -> bytes:
        """Of this process, or of all workers that share its port (workers.py); then without what Python says of one process."""
        if METRICS_FOLDER not in os.environ:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        shared.register(self._backlog)  # workers share the spool's folder: each sees all of it
        return generate_latest(shared)


class _BacklogCollector(Collector):
    """Looks at the spool when it is asked, not on every request."""

    def __init__(self, backlog: Callable[[], Backlog]) -> None:
        self._backlog = backlog

    def collect(self) -> Iterator[Metric]:
        backlog = self._backlog()
        yield GaugeMetricFamily("pigeonhole_log_spool_bytes", "Records not yet in the store", value=backlog.size_bytes)
        yield GaugeMetricFamily("pigeonhole_log_oldest_seconds", "Age of the oldest of them", value=backlog.oldest_s)
        yield GaugeMetricFamily(
            "pigeonhole_log_failures", "Failed attempts since the log was last shipped", value=backlog.failures
        )
