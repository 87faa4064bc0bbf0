import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import tasks
import yaml

FOLDER = Path(__file__).parents[2] / ".github/workflows"
WORKFLOWS = sorted(FOLDER.glob("*.y*ml"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(request.param.read_text(encoding="utf-8"))
    return loaded


def test_there_is_a_workflow() -> None:
    assert FOLDER / "check.yaml" in WORKFLOWS


def test_nothing_is_permitted_unless_a_job_asks(workflow: dict[Any, Any]) -> None:
    assert workflow["permissions"] == {}
    assert all(job["permissions"] for job in workflow["jobs"].values())


def test_every_job_ends_and_a_newer_push_replaces_it(workflow: dict[Any, Any]) -> None:
    assert all(0 < job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())
    assert workflow["concurrency"]["cancel-in-progress"] is True


def test_no_untrusted_expression_reaches_a_shell(workflow: dict[Any, Any]) -> None:
    assert [step for job in workflow["jobs"].values() for step in job["steps"] if "${{" in step.get("run", "")] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_their_version_beside_it(path: Path) -> None:
    uses = [line for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert uses
    assert [line for line in uses if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)] == []


def test_checkout_leaves_no_token_behind(workflow: dict[Any, Any]) -> None:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if "checkout" in step.get("uses", "")]
    assert steps
    assert all(step["with"]["persist-credentials"] is False for step in steps)


SCRIPTS = Path(sysconfig.get_path("scripts"))
ZIZMOR = [SCRIPTS / "zizmor", "--offline", "--quiet", "--no-progress", "--color=never"]
SCHEMA = [SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows"]
TRIGGERS = {
    "check.yaml": {"push": {"branches": ["main"]}, "pull_request": None},
    "deploy.yaml": {"workflow_dispatch"},
    "images.yaml": {"push", "pull_request"},
    "nightly.yaml": {"schedule": [{"cron": "17 3 * * *"}], "workflow_dispatch": None},
}


def ran(line: list[Any], path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*line, path], capture_output=True, text=True, check=False)


def unknown_tasks(text: str) -> set[str]:
    return set(re.findall(r"\binvoke (?!--)([\w.-]+)", text)) - set(tasks.namespace.task_names) - set(tasks.namespace.collections)


def test_each_workflow_starts_when_it_says_and_at_no_other_time() -> None:
    found = {path.name: yaml.safe_load(path.read_text(encoding="utf-8"))[True] for path in WORKFLOWS}  # YAML 1.1 reads on as True
    assert found.keys() == TRIGGERS.keys()
    assert all(found[name] == told if isinstance(told, dict) else set(found[name]) == told for name, told in TRIGGERS.items())


def test_paths_that_trigger_are_there() -> None:
    root = FOLDER.parents[1]
    for path in WORKFLOWS:
        for event in yaml.safe_load(path.read_text(encoding="utf-8"))[True].values():
            asked = (event or {}).get("paths", []) if isinstance(event, dict) else []
            assert [name for name in asked if not (root / name.removesuffix("/**")).exists()] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_task_that_a_workflow_calls_exists(path: Path) -> None:
    assert unknown_tasks(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_zizmor_and_githubs_schema_find_nothing(path: Path) -> None:
    for line in (ZIZMOR, SCHEMA):
        answer = ran(line, path)
        assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ("runs-on:", "run-on:", SCHEMA),
        ("timeout-minutes: 45", "timeout-minutes: long", SCHEMA),
        ("contents: read", "contents: reed", SCHEMA),
        ('--which "$IMAGE"', '--which "${{ github.head_ref }}"', ZIZMOR),
        ("        with:\n          persist-credentials: false\n", "", ZIZMOR),
        ("@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "@v5", ZIZMOR),
    ],
)
def test_a_planted_fault_is_caught(right: str, wrong: str, line: list[Any], tmp_path: Path) -> None:
    text = (FOLDER / "images.yaml").read_text(encoding="utf-8")
    assert right in text
    folder = tmp_path / ".github/workflows"
    folder.mkdir(parents=True)
    (folder / "images.yaml").write_text(text.replace(right, wrong), encoding="utf-8")
    assert ran(line, folder / "images.yaml").returncode != 0


def test_a_task_that_is_misspelt_is_caught() -> None:
    assert unknown_tasks("uv run invoke imagse --which serve") == {"imagse"}
