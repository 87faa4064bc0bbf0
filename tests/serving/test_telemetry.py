import json
import re
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tests.serving.conftest import LABELS, Running

from pigeonhole.classifier import Classifier
from pigeonhole.prediction_log import Backlog
from pigeonhole.serving.telemetry import Telemetry

MONITORING = Path(__file__).parents[2] / "monitoring"


def samples(service: Running) -> dict[str, float]:
    """`name{label=value,…}` -> value."""
    families = text_string_to_metric_families(service.http.get("/metrics").text)
    return {
        f"{sample.name}{{{','.join(f'{name}={value}' for name, value in sorted(sample.labels.items()))}}}": sample.value
        for family in families
        for sample in family.samples
    }


def test_answers_are_counted_by_route_and_code_and_no_path_becomes_a_route(running: Running) -> None:
    running.http.post("/predict", json={"text": "parcel"})
    running.http.post("/predict", json={"text": " "})
    running.http.get("/predict")
    for number in range(3):
        running.http.get(f"/nope/{number}")
    running.raw(b"GET /health?" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    found = samples(running)
    assert found["pigeonhole_requests_total{code=200,route=/predict}"] == 1
    assert found["pigeonhole_requests_total{code=422,route=/predict}"] == 1
    assert found["pigeonhole_requests_total{code=404,route=other}"] == 3
    assert found["pigeonhole_requests_total{code=414,route=other}"] == 1
    assert found["pigeonhole_request_seconds_count{route=other}"] == 4
    assert not [name for name in found if "nope" in name]


def test_predictions_are_counted_by_label_and_score(running: Running) -> None:
    running.http.post("/predict", json={"texts": ["parcel", "parcel", "refund"]})
    found = samples(running)
    assert [found[f"pigeonhole_predictions_total{{label={label}}}"] for label in LABELS] == [0, 2, 1]
    assert found["pigeonhole_score_count{}"] == 3
    assert found["pigeonhole_batch_texts_sum{}"] == 3
    assert found["pigeonhole_model_seconds_count{}"] == 1
    assert found["pigeonhole_model_info{model=words,role=production,version=20260301-120000}"] == 1


def test_the_buckets_are_of_use_for_milliseconds(running: Running) -> None:
    running.http.post("/predict", json={"text": "parcel"})
    bounds = [name for name in samples(running) if name.startswith("pigeonhole_request_seconds_bucket{") and "/predict" in name]
    assert len([name for name in bounds if float(name.split("le=")[1].split(",")[0]) <= 0.1]) >= 8


def test_the_backlog_of_the_log_is_shown(classifier: Classifier) -> None:
    shown = Telemetry(classifier.manifest, lambda: Backlog(size_bytes=7, oldest_s=3.0, failures=2)).exposition().decode()
    for line in ("pigeonhole_log_spool_bytes 7.0", "pigeonhole_log_oldest_seconds 3.0", "pigeonhole_log_failures 2.0"):
        assert line in shown.splitlines()


def test_waits_tokens_and_stalls_are_measured(running: Running) -> None:
    running.http.post("/predict", json={"texts": ["my parcel", "refund"]})
    running.http.post("/explain", json={"text": "my parcel"})
    time.sleep(0.15)
    found = samples(running)
    assert found["pigeonhole_queue_seconds_count{}"] == 2  # nobody waits for the variants of an explanation alone
    assert found["pigeonhole_batch_tokens_sum{}"] == (4 + 3) + (4 + 3 + 3)
    assert found["pigeonhole_event_loop_stall_seconds_count{}"] >= 1


def test_every_series_that_a_dashboard_or_a_rule_asks_for_is_there(running: Running) -> None:
    running.http.post("/predict", json={"text": "parcel"})
    there = {name.partition("{")[0] for name in samples(running)}
    texts = {path.name: path.read_text(encoding="utf-8") for path in MONITORING.iterdir() if path.suffix in (".json", ".yaml")}
    asked = {name: set(re.findall(r"(?<![:\w])(?:pigeonhole_(?!drift_)|process_)\w+", text)) for name, text in texts.items()}
    assert len(asked["grafana.json"]) >= 15
    assert {name: series - there for name, series in asked.items() if series - there} == {}


def test_every_label_that_the_grafana_dashboard_asks_for_is_there(running: Running) -> None:
    running.http.post("/predict", json={"text": "parcel"})
    labels = {label for name in samples(running) for label in re.findall(r"[{,](\w+)=", name)}
    dashboard = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = {label for found in expressions for part in re.findall(r"by \(([^)]*)\)", found) for label in part.split(", ")}
    assert asked - labels == set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_what_each_of_several_workers_has_is_added_up(classifier: Classifier) -> None:
    found = Telemetry(classifier.manifest, lambda: Backlog(0, 0.0, 0))
    for gauge in (found.in_flight, found.waiting):
        assert gauge._multiprocess_mode == "livesum"
