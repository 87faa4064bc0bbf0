"""Check every cloud file on the ground and say how: a table on stderr, one JSON object on stdout.

    uv run invoke cloud.check [--images "serve drift frontend"]

Runs the tests that parse each file by its vendor's types, lint it and plant faults in it; promtool; a killed server under a real
Prometheus and Alertmanager; the images, really built, run and asked; compose.yaml, really started; pip-audit. What cannot be done
here is told by name. Ends with 4 where a check fails. Knows nothing of how a check works.
"""

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.keyword_bundle import keyword_bundle

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import GateError
from pigeonhole.options import read_options, setting

ROOT = Path(__file__).parents[2]
Kind = Literal["real run", "vendor's types", "vendor's linter", "own test"]
ALARM, AUDIT, IMAGES, RULES, STACK = "alarm", "audit", "images", "rules", "stack"
# What a step says where the machine, and not the file, is in the way.
NOT_HERE = (
    "no container can be made here",
    "not here; apt-get install",
    "neither a Docker engine",
    "could not be audited",
    "Failed to resolve",
    "ConnectionError",
)


@dataclass(frozen=True)
class Row:
    """Files that are checked alike. `by`: test files, and steps; `unproven`: what only the real service can show."""

    files: str
    kinds: tuple[Kind, ...]
    how: str
    by: tuple[str, ...]
    unproven: str = ""


IMAGE_TESTS = ("tests/cloud/test_images.py", IMAGES)
ROWS = (
    Row(
        "dockerfiles/*.dockerfile",
        ("vendor's linter", "real run"),
        "hadolint; built, run, asked",
        IMAGE_TESTS,
        "pinned base; GPU",
    ),
    Row(
        "dockerfiles/build.py dockerfiles/engine.py",
        ("real run",),
        "bills of materials against the images",
        IMAGE_TESTS,
        "Docker",
    ),
    Row(".dockerignore", ("own test",), "denies all but what is copied", ("tests/cloud/test_images.py",)),
    Row(
        "compose.yaml dockerfiles/stack.py monitoring/compose.yaml",
        ("vendor's types", "real run"),
        "compose-spec's schema; started and visited",
        ("tests/frontend/test_compose.py", "tests/cloud/test_stack.py", STACK),
        "Docker; the published Prometheus image",
    ),
    Row(
        "cloudbuild/*.yaml cloudbuild/triggers/*.yaml cloudbuild/*.json",
        ("vendor's types", "vendor's linter"),
        "cloudbuild_v1, published schema; retention by what it deletes",
        ("tests/cloud/test_cloud_build.py", "tests/cloud/test_setup.py"),
        "roles, builder images, Pub/Sub, quota",
    ),
    Row(
        "cloudrun/*.yaml",
        ("vendor's types", "real run"),
        "run_v2; deployed, refused and rolled back against a local stand-in",
        ("tests/cloud/test_deploy.py",),
        "roles, identity token, traffic split, sidecar",
    ),
    Row(
        "src/pigeonhole/cloud/*.py",
        ("vendor's linter", "real run"),
        "gcloud's own linter where it is; a gcloud that keeps what it made",
        ("tests/cloud/test_setup.py", "tests/cloud/test_project.py", "tests/cloud/test_quota.py", "tests/cloud/test_cost.py"),
        "a real project; prices",
    ),
    Row(
        "rayclusters/*.yaml",
        ("vendor's types",),
        "aiplatform_v1; the RayJob's types as written down in the test",
        ("tests/scoring/test_rayclusters.py",),
        "operator, cluster",
    ),
    Row(
        "src/pigeonhole/training/vertex.py",
        ("vendor's types", "real run"),
        "aiplatform_v1; sent by the vendor's client to a local stand-in",
        ("tests/training/test_vertex.py", "tests/training/test_worker.py", "tests/loop/test_vertex_retrain.py"),
        "roles, quota, spot, GPU",
    ),
    Row(
        "monitoring/recording_rules.yaml monitoring/alert_rules.yaml monitoring/rules_test.yaml monitoring/alarm.py",
        ("vendor's linter", "real run"),
        "promtool check and test; a killed server told to a webhook",
        ("tests/cloud/test_alarm.py", RULES, ALARM),
        "managed Prometheus",
    ),
    Row(
        "monitoring/alert_policies/*.json monitoring/dashboard.json monitoring/grafana.json",
        ("vendor's types",),
        "monitoring_v3, dashboard_v1; each metric is exported",
        ("tests/cloud/test_alerts.py",),
        "a message that arrives; how a dashboard looks",
    ),
    Row(
        ".github/workflows/*.yaml .github/dependabot.yml .github/actionlint/* .devcontainer/devcontainer.json",
        ("vendor's linter",),
        "zizmor, GitHub's schemas, actionlint; triggers and lines; model-change's steps really run",
        ("tests/house/test_workflows.py", "tests/house/test_model_change.py"),
        "a run on GitHub; macOS, Windows, Python 3.12 to 3.14",
    ),
    Row(
        ".github/ruleset.json",
        ("own test",),
        "its required checks are the jobs of check.yaml, for each system and Python",
        ("tests/house/test_workflows.py",),
        "GitHub's own reading of it",
    ),
    Row(
        ".ci/run .ci/tools .pre-commit-config.yaml",
        ("real run",),
        "run with programs that end as told",
        ("tests/house/test_tasks.py",),
    ),
    Row(
        ".github/secret_scan.py .github/CODEOWNERS",
        ("real run",),
        "planted secrets; the history",
        ("tests/house/test_secrets.py",),
    ),
    Row(
        "data.dvc .dvc/config .dvc/.gitignore .dvcignore",
        ("real run",),
        "push, status and pull against Cloud Storage's API",
        ("tests/dataset/test_remote.py",),
        "the real bucket",
    ),
    Row(".github/axe/*", ("real run",), "the page in Chromium (tests/e2e, part of check)", ()),
    Row("pyproject.toml uv.lock", ("real run",), "pip-audit", (AUDIT,)),
)


@dataclass
class CheckConfig:
    images: str = setting("serve drift frontend", "the images to build, of serve drift frontend score train")


@dataclass
class Result:
    """What became of a test file or a step. `left_out`: why it could not be done here."""

    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    left_out: list[str] = field(default_factory=list)


@with_help(__doc__)
def run(arguments: list[str]) -> dict[str, Any]:
    config = read_options(CheckConfig, arguments)
    began = time.perf_counter()
    files = sorted({name for row in ROWS for name in row.by if name.startswith("tests/")})
    results = run_tests(files)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = keyword_bundle(Path(scratch) / "bundle", "v1").folder
        for name, line in steps(config.images, bundle).items():
            results[name] = run_step(name, line)
    rows = [told(row, results) for row in ROWS]
    say(table(rows))
    result = {"rows": rows, "seconds": round(time.perf_counter() - began, 1), "failed": sum(row["failed"] for row in rows)}
    if result["failed"]:
        raise GateError("a cloud file is not what it has to be; the lines above say which", result)
    return result


def steps(images: str, bundle: Path) -> dict[str, list[str]]:
    python = [sys.executable, "-m"]
    return {
        RULES: [*python, "invoke", "rules"],
        ALARM: [*python, "monitoring.alarm", f"bundle={bundle}"],
        IMAGES: [*python, "dockerfiles.build", *images.split(), "skip=allowed", "sbom=artefacts/sbom"],
        STACK: [*python, "dockerfiles.stack"],
        AUDIT: [*python, "invoke", "audit"],
    }


def run_tests(files: Sequence[str]) -> dict[str, Result]:
    """All in one go, on both cores; the seconds of a file are those of its tests."""
    results = {name: Result() for name in files}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *files], cwd=ROOT, stdout=sys.stderr, check=False
        )
        cases = list(ET.parse(report).iter("testcase"))
    for case in cases:
        result = results[next(name for name in files if case.attrib["classname"].startswith(module(name)))]
        result.seconds += float(case.attrib["time"])
        if (skipped := case.find("skipped")) is not None:
            result.left_out.append(skipped.attrib.get("message", ""))
        elif case.find("failure") is not None or case.find("error") is not None:
            result.failed += 1
        else:
            result.passed += 1
    return results


def module(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".")


def run_step(name: str, line: Sequence[str]) -> Result:
    say(f"{name}: {' '.join(line[1:])}")
    began = time.perf_counter()
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    result = Result(seconds=time.perf_counter() - began)
    said = (ran.stdout + ran.stderr).strip()
    result.left_out += [text for text in said.splitlines() if text.startswith("left out")]
    if reason := next((text for text in said.splitlines() if any(word in text for word in NOT_HERE)), ""):
        result.left_out.append(reason[:300])
    elif ran.returncode:
        result.failed += 1
        say(said[-3000:])
    else:
        result.passed += 1
    return result


def told(row: Row, results: dict[str, Result]) -> dict[str, Any]:
    found = [results[name] for name in row.by]
    return {
        "files": row.files,
        "kinds": row.kinds,
        "how": row.how,
        "passed": sum(each.passed for each in found),
        "failed": sum(each.failed for each in found),
        "left_out": sorted({reason for each in found for reason in each.left_out}),
        "seconds": round(sum(each.seconds for each in found), 1),
        "unproven": row.unproven,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| files | checked by | kind | passed | failed | left out here | seconds | stays unproven |", "|" + "---|" * 8]
    for row in rows:
        cells = [row["files"], row["how"], ", ".join(row["kinds"]), row["passed"], row["failed"]]
        cells += ["; ".join(row["left_out"]), row["seconds"], row["unproven"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command(run)()
