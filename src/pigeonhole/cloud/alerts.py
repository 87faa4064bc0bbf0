"""`uv run python -m pigeonhole.cloud.alerts`: alert policies of Cloud Monitoring out of the Prometheus rules; both say the same.

Managed Prometheus stores what the sidecar scrapes; recording rules do not run there, so their expressions are put in place.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError

FOLDER = Path("monitoring")
POLICIES = "alert_policies"
SERVER_ONLY = frozenset({"PigeonholeDown"})  # Cloud Run restarts what answers no probe, and scales to zero
SEVERITIES = {"page": "CRITICAL", "ticket": "WARNING"}


@with_help(__doc__)
def run(arguments: list[str]) -> dict[str, list[str]]:
    if arguments:
        raise ConfigError(f"{' '.join(arguments)}: no argument is known; give none")
    made = make_policies(FOLDER)
    for name, policy in made.items():
        file = FOLDER / POLICIES / f"{name}.json"
        file.write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")
    say(f"{len(made)} policies written to {FOLDER / POLICIES}")
    return {"policies": sorted(made)}


def make_policies(folder: Path) -> dict[str, dict[str, Any]]:
    """By file name."""
    import yaml  # only where policies are made

    groups = yaml.safe_load((folder / "recording_rules.yaml").read_text(encoding="utf-8"))["groups"]
    recorded = {rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}
    alerts = yaml.safe_load((folder / "alert_rules.yaml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in alerts for rule in group["rules"] if rule["alert"] not in SERVER_ONLY]
    return {_file_name(rule["alert"]): _policy(rule, recorded) for rule in rules}


def expand(expression: str, recorded: Mapping[str, str]) -> str:
    """Put the expressions of recording rules in the place of their names, as often as it takes."""
    while True:
        wider = re.sub(r"pigeonhole:\w+:\w+", lambda found: f"({recorded[found.group()].strip()})", expression)
        if wider == expression:
            return wider
        expression = wider


def _file_name(alert: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", alert.removeprefix("Pigeonhole")).lower()


def _policy(rule: Mapping[str, Any], recorded: Mapping[str, str]) -> dict[str, Any]:
    condition = {
        "query": expand(rule["expr"], recorded),
        "duration": f"{int(rule['for'].removesuffix('m')) * 60}s",
        "evaluationInterval": "30s",
        "alertRule": rule["alert"],
    }
    # Prometheus fills {{ … }} in; Cloud Monitoring shows the value beside the text.
    advice = re.sub(r"\{\{.*?\}\}", "the value", rule["annotations"]["summary"])
    return {
        "displayName": rule["alert"],
        "combiner": "OR",
        "conditions": [{"displayName": rule["alert"], "conditionPrometheusQueryLanguage": condition}],
        "documentation": {"content": advice, "mimeType": "text/markdown"},
        "severity": SEVERITIES[rule["labels"]["severity"]],
        "alertStrategy": {"autoClose": "3600s"},
        "userLabels": {"app": "pigeonhole"},
    }


if __name__ == "__main__":
    command(run)()
