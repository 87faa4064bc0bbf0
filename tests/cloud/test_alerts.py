import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud import monitoring_dashboard_v1, monitoring_v3
from google.protobuf.json_format import ParseError

from pigeonhole.cloud import alerts
from pigeonhole.drift.service import Telemetry as DriftTelemetry
from pigeonhole.errors import ConfigError
from pigeonhole.prediction_log import Backlog
from pigeonhole.serving.telemetry import Telemetry

FOLDER = Path(__file__).parents[2] / "monitoring"
POLICIES = sorted((FOLDER / alerts.POLICIES).glob("*.json"))
PROCESS = {"process_resident_memory_bytes", "up"}


def policy(text: str) -> monitoring_v3.AlertPolicy:
    found: monitoring_v3.AlertPolicy = monitoring_v3.AlertPolicy.from_json(text, ignore_unknown_fields=False)
    return found


def dashboard(text: str) -> monitoring_dashboard_v1.Dashboard:
    found: monitoring_dashboard_v1.Dashboard = monitoring_dashboard_v1.Dashboard.from_json(text, ignore_unknown_fields=False)
    return found


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names that the service gives to Prometheus, from the service itself."""
    from types import SimpleNamespace

    manifest: Any = SimpleNamespace(name="tickets", version="1", labels=("billing",))
    telemetry = Telemetry(manifest, lambda: Backlog(0, 0.0, 0))
    telemetry.request("POST", "/predict", 200, 0.01)
    said = telemetry.exposition() + DriftTelemetry().exposition()
    return set(re.findall(r"^([a-z_]+)[{ ]", said.decode(), re.MULTILINE))


def metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"\b((?:pigeonhole|process)_[a-z_]+|up)\b(?=[\[{)\s]|$)", expression))


def expressions() -> list[str]:
    groups = [group for name in ("recording_rules", "alert_rules") for group in read(name)["groups"]]
    tiles = json.loads((FOLDER / "dashboard.json").read_text())["mosaicLayout"]["tiles"]
    queries = [part["timeSeriesQuery"]["prometheusQuery"] for tile in tiles for part in tile["widget"]["xyChart"]["dataSets"]]
    return [*(rule["expr"] for group in groups for rule in group["rules"]), *queries]


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return found


def test_every_metric_of_a_rule_or_a_chart_is_one_that_the_service_exports(exported: set[str]) -> None:
    asked = {name for expression in expressions() for name in metrics_of(expression)}
    assert len(asked) > 6
    assert asked - exported - PROCESS == set()
    misspelt = metrics_of('sum(rate(pigeonhole_request_total{code="200"}[5m]))')
    assert misspelt - exported - PROCESS == {"pigeonhole_request_total"}


def test_a_chart_of_a_process_is_of_the_service_alone() -> None:
    """Every program that a Prometheus scrapes has these series; the job is the one that the rules ask for."""
    panels = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", []) if "process_" in target["expr"]]
    assert len(asked) == 3
    assert [expression for expression in asked if not re.search(r'process_\w+\{job="pigeonhole"\}', expression)] == []
    assert 'up{job="pigeonhole"}' in (FOLDER / "alert_rules.yaml").read_text(encoding="utf-8")


def test_the_committed_policies_are_made_from_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FOLDER, tmp_path / "monitoring", ignore=shutil.ignore_patterns("*.json"))
    monkeypatch.chdir(tmp_path)
    made = alerts.run([])
    assert made == {"policies": [path.stem for path in POLICIES]}
    assert [(tmp_path / path.relative_to(FOLDER.parent)).read_text() for path in POLICIES] == [p.read_text() for p in POLICIES]


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_every_policy_is_one_of_cloud_monitoring(path: Path) -> None:
    found = policy(path.read_text())
    assert "pigeonhole:" not in found.conditions[0].condition_prometheus_query_language.query
    assert found.documentation.content


def test_the_dashboard_is_one_of_cloud_monitoring() -> None:
    assert len(dashboard((FOLDER / "dashboard.json").read_text()).mosaic_layout.tiles) == 8


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"combiner": "OR"', '"combiner": "EITHER"'),
        ('"severity": "CRITICAL"', '"severity": "VERY"'),
        ('"duration": "300s"', '"duration": "five minutes"'),
        ('"alertStrategy"', '"alertStrategie"'),
    ],
)
def test_a_planted_fault_in_a_policy_is_caught(right: str, wrong: str) -> None:
    text = (FOLDER / alerts.POLICIES / "errors.json").read_text()
    assert right in text
    with pytest.raises(ParseError):
        policy(text.replace(right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong"), [('"LINE"', '"CURVE"'), ('"prometheusQuery"', '"promQuery"'), ('"width": 24', '"width": "x"')]
)
def test_a_planted_fault_in_the_dashboard_is_caught(right: str, wrong: str) -> None:
    text = (FOLDER / "dashboard.json").read_text()
    assert right in text
    with pytest.raises(ParseError):
        dashboard(text.replace(right, wrong))


def test_recorded_names_are_expanded_through_each_other() -> None:
    recorded = {"pigeonhole:a:rate": "sum(x)", "pigeonhole:b:ratio": "y / pigeonhole:a:rate"}
    assert alerts.expand("pigeonhole:b:ratio > 1", recorded) == "(y / (sum(x))) > 1"


def test_help_prints_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert alerts.run(["--help"]) is None
    assert "Cloud Monitoring" in capsys.readouterr().out


def test_an_argument_is_none_that_it_knows() -> None:
    with pytest.raises(ConfigError, match="zebra=1: no argument is known"):
        alerts.run(["zebra=1"])
