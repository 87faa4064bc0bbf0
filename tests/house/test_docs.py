import json
import re
from pathlib import Path

import docs.reference as reference
import yaml

ROOT = Path(__file__).parents[2]


def test_the_runbook_has_a_section_for_each_alert() -> None:
    rules = yaml.safe_load((ROOT / "monitoring/alert_rules.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    sections = set(re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE))
    assert alerts == sections


def test_every_page_stands_in_the_navigation() -> None:
    told = set(re.findall(r'"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    written = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    made = {f"reference/{name}.md" for name in ("commands", "configuration", "environment", "http", "telemetry")}
    assert told == written | made


def test_the_http_page_tells_what_each_route_may_be_asked() -> None:
    page = reference.http(json.loads((ROOT / "tests/serving/openapi.json").read_text(encoding="utf-8")))
    predict = page.partition("## POST /predict\n")[2].partition("\n## ")[0]
    assert "Body: PredictRequest or PredictManyRequest or HuggingFaceRequest or VertexRequest." in predict
    assert "| `X-Request-Timeout-Ms` | header | integer | minimum 1, maximum 999999999 |" in predict
    history = page.partition("## GET /history\n")[2].partition("\n## ")[0]
    assert "| `hours` | query | number | exclusiveMinimum 0, maximum 168 | 24 | Until now. |" in history


def test_the_http_page_tells_the_limits_inside_a_choice_and_a_list() -> None:
    page = reference.http(json.loads((ROOT / "tests/serving/openapi.json").read_text(encoding="utf-8")))
    many = page.partition("### PredictManyRequest\n")[2].partition("\n### ")[0]
    assert "| `texts` | list of string | minItems 1, maxItems 256, each: minLength 1, maxLength 8192 |" in many
    assert "| `top_k` | integer or null | minimum 1 | How many of the likeliest labels to tell; all if it is left out. |" in many
