import re
from pathlib import Path

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
