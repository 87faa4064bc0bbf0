import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tasks
import yaml
from invoke.collection import Collection
from invoke.context import Context, MockContext
from invoke.exceptions import Exit, UnexpectedExit
from invoke.runners import Result

ROOT = Path(tasks.__file__).parent
DATA = [tasks.MATERIALISE, tasks.COMMIT, tasks.STATUS]
CHECK = [
    tasks.LINT,
    tasks.FORMAT,
    tasks.TYPES,
    tasks.CONTRACTS,
    tasks.REFERENCE,
    tasks.SITE,
    *DATA,
    tasks.TEST,
    tasks.TEST_SCORING,
]


def lines_of(name: str, **arguments: Any) -> list[str]:
    """The shell lines that a task (after the tasks that it asks for) runs, with nothing really run."""
    lines: list[str] = []

    class Recorder(Context):
        def run(self, command: str, **_: Any) -> Result:
            lines.append(command)
            return Result(stdout="Data and pipelines are up to date.")

    task = tasks.namespace[name]
    for before in task.pre:
        before(Recorder())
    task(Recorder(), **arguments)
    return lines


def lines_of_words(words: str) -> list[str]:
    """The shell lines behind `uv run invoke data data.status`; any other line stands for itself."""
    if not words.startswith("uv run invoke "):
        return [words]
    return [line for name in words.removeprefix("uv run invoke ").split() for line in lines_of(name)]


def in_order(lines: list[str]) -> list[str]:
    """The tests, which stand last, run side by side."""
    return [*lines[:-2], *sorted(lines[-2:])]


def test_check_runs_every_check_once_in_order() -> None:
    assert in_order(lines_of("check")) == in_order(CHECK)


def test_ci_runs_check_in_an_environment_made_from_the_lock() -> None:
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert script.index("uv sync --locked") < script.index("uv run invoke check || failed=$?")
    assert script[-1] == 'exit "$failed"'
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
@pytest.mark.parametrize(("check", "images", "code"), [(0, 0, 0), (4, 0, 4), (0, 3, 3)])
def test_ci_fails_where_the_checks_or_the_images_do_and_tells_of_the_images(
    check: int, images: int, code: int, tmp_path: Path
) -> None:
    """`.ci/run` as CI runs it, with an uv and an apt-get that only end as they are told."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    (tmp_path / ".ci/tools").write_text("echo tools")
    programs = {
        "uv": f'case "$*" in "run invoke check") exit {check};; "run invoke images --skip") echo asked; exit {images};; esac',
        "apt-get": "",
        "id": "echo 0",
    }
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CI": "true"}
    ran = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (code, "tools\nasked\n")
    apart = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, env=environment | {"CI": ""}, capture_output=True, text=True, check=False
    )
    assert (apart.returncode, apart.stdout[:18]) == (check, "SKIPPED all images")
    (tmp_path / ".ci/tools").write_text("exit 7")  # beside the packages
    broken = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (broken.returncode, broken.stdout) == (7, "")


def test_ci_installs_what_builds_images() -> None:
    tools = (ROOT / ".ci/tools").read_text(encoding="utf-8")
    assert re.search(r"^packages=\(.*\bbuildah mmdebstrap bubblewrap\)$", tools, re.MULTILINE)


def test_pre_commit_hooks_run_the_lines_of_check_in_order() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert [line for hook in hooks for line in lines_of_words(hook["entry"])] == CHECK
    assert all(hook["always_run"] and not hook["pass_filenames"] for hook in hooks)


def test_github_workflow_runs_the_lines_of_check_in_order() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yaml").read_text())
    runs = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step and "if" not in step]
    assert runs[0] == "uv sync --locked"
    assert in_order([line for run in runs[1:] for line in lines_of_words(run)]) == in_order(CHECK)


@pytest.mark.parametrize("name", sorted(tasks.namespace.task_names))
def test_every_task_says_what_it_does(name: str) -> None:
    assert (tasks.namespace[name].__doc__ or "").strip()


def test_namespace_holds_every_task_of_the_file() -> None:
    defined = {value for value in vars(tasks).values() if type(value).__name__ == "Task"}
    below = [collection for collection in tasks.namespace.collections.values() if isinstance(collection, Collection)]
    assert defined == {*tasks.namespace.tasks.values(), *(found for each in below for found in each.tasks.values())}


def test_a_remote_url_is_one_word_of_the_line() -> None:
    assert lines_of("data.remote", url="gs://bucket/a b")[0].endswith(" gcs 'gs://bucket/a b'")


def test_the_remote_is_the_bucket_of_the_project_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_PROJECT", "some-project")
    assert lines_of("data.remote")[0].endswith(" gcs gs://some-project-pigeonhole/dvc")
    monkeypatch.delenv("PIGEONHOLE_PROJECT")
    with pytest.raises(Exit, match="set PIGEONHOLE_PROJECT, or give --url"):
        lines_of("data.remote")


def test_changed_data_end_the_status_task_with_the_next_step() -> None:
    context = MockContext(run=Result("data.dvc:\n\tchanged outs:\n\t\tmodified: data"))
    with pytest.raises(Exit, match="uv run invoke data"):
        tasks.status(context)


SUMMARY = """
SKIPPED [1] tests/test_a.py:3: needs a GPU
SKIPPED [2] tests/test_b.py:9: could not import 'onnx': No module named 'onnx'
3 passed, 3 skipped
"""


def test_only_a_skip_for_what_ci_cannot_install_is_accepted() -> None:
    assert tasks.forbidden_skips(SUMMARY) == ["SKIPPED [2] tests/test_b.py:9: could not import 'onnx': No module named 'onnx'"]


def test_every_reason_to_skip_a_test_is_one_that_ci_accepts_or_names_what_a_machine_of_ci_has() -> None:
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    reasons = {
        found for file in files for found in re.findall(r'\b(?:reason=|why = |pytest\.skip\()(?:\n\s*)?"([^"]+)"', file) if found
    }
    assert len(reasons) > 20
    refused = set(tasks.forbidden_skips("\n".join(f"SKIPPED [1] tests/test_a.py:3: {reason}" for reason in reasons)))
    assert {line.rpartition(": ")[2] for line in refused} == {
        "needs what .ci/tools installs",
        "needs gcloud",
        "needs the right to make a process namespace",
    }


def test_a_browser_that_is_missing_is_no_excuse_on_ci() -> None:
    """What tests/e2e says where there is no Chromium or no axe; .ci/tools installs both."""
    line = "SKIPPED [7] tests/e2e/test_visit.py: needs chromium and axe-core, which .ci/tools installs"
    assert tasks.forbidden_skips(line) == [line]
    tools = (ROOT / ".ci/tools").read_text(encoding="utf-8")
    assert "chromium" in tools
    assert ".github/axe" in tools


@pytest.mark.parametrize(("ci", "refused"), [("true", True), ("", False)])
def test_a_forbidden_skip_fails_the_test_task_on_ci_alone(ci: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    context = MockContext(run=Result(SUMMARY))
    if not refused:
        tasks.test(context)
        return
    with pytest.raises(Exit, match="could not import 'onnx'"):
        tasks.test(context)


@pytest.mark.parametrize("failing", [tasks.TEST, tasks.TEST_SCORING])
def test_either_half_of_the_tests_fails_the_task_and_both_are_told(failing: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Half(Context):
        def run(self, command: str, *, warn: bool = False, **_: Any) -> Result:
            result = Result(f"{command} was run", exited=5 if command == failing else 0)
            if result.failed and not warn:
                raise UnexpectedExit(result)
            return result

    with pytest.raises((Exit, UnexpectedExit)) as ended:
        tasks.test(Half())
    assert getattr(ended.value, "code", 5) == 5
    assert f"{tasks.TEST_SCORING} was run" in capsys.readouterr().out


def test_the_data_of_another_commit_are_compared_with_todays() -> None:
    git, compare = lines_of("data.change", base="abc; rm -rf .", out="a b.md")
    assert git.startswith("git show 'abc; rm -rf .:src/pigeonhole/dataset/tickets/tickets.csv' > ")
    assert compare.endswith(" report='a b.md'")


def test_a_commit_to_compare_with_is_checked_out_beside_and_never_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lines_of("load", bundle="b")[0].endswith("bundle=b users=50 seconds=30")
    first = lines_of("load", bundle="b", base="a b")
    assert first[0] == "git worktree add --detach artefacts/base 'a b'"
    assert first[1].endswith(" against=artefacts/base")
    (tmp_path / tasks.BASE).mkdir(parents=True)
    assert lines_of("load", bundle="b", base="a b") == ["git worktree remove --force artefacts/base", *first]


@pytest.mark.parametrize("name", ["setup", "preflight", "teardown"])
def test_a_dry_run_of_the_cloud_is_one_and_data_are_taken_only_if_asked(name: str) -> None:
    (line,) = lines_of(f"cloud.{name}")
    assert re.search(rf"pigeonhole\.cloud\.setup {name}( machine=cpu)?$", line)
    assert lines_of(f"cloud.{name}", dry_run=True) == [f"{line} --dry-run"]
    if name == "teardown":
        assert lines_of("cloud.teardown", data=True) == [f"{line} --data"]


def test_images_are_left_out_only_where_that_is_allowed() -> None:
    (line,) = lines_of("images")
    assert "skip" not in line
    assert "skip=allowed" in lines_of("images", skip=True)[0]


def test_another_torch_is_told_by_its_own_words() -> None:
    context = MockContext(run=[Result(), Result(stdout="2.15.0+cpu\n")])
    with pytest.raises(Exit, match=r"torch 2\.15\.0\+cpu is installed, not 2\.8\.0"):
        tasks.torch(context)


def test_another_torch_is_the_oldest_that_the_project_allows() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    assert f"torch>={tasks.TORCH.removesuffix('.0')}" in groups["train"]


def test_every_image_has_a_bill_of_materials_of_the_group_that_it_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = {path.stem for path in (ROOT / "dockerfiles").glob("*.dockerfile")} - {"serve_baked"}
    assert images <= set(tasks.IMAGE_GROUPS)
    assert len(lines_of("sbom", out="sbom")) == len(tasks.IMAGE_GROUPS)
    for name in images:
        words = tasks.IMAGE_GROUPS[name]
        lines = (ROOT / f"dockerfiles/{name}.dockerfile").read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if line.endswith((words, f"{words} --no-editable"))]


def test_an_audit_reads_each_image_and_passes_over_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = lines_of("audit")
    asked = [groups for groups in tasks.IMAGE_GROUPS.values() if any(f" {groups} " in line for line in lines)]
    assert asked == list(tasks.IMAGE_GROUPS.values())
    assert [line for line in lines if line.startswith("uvx pip-audit") and " --strict " not in line] == []


def test_a_tag_is_the_version_or_nothing_is_released() -> None:
    with pytest.raises(Exit, match=r"tag v9\.9\.9: pyproject\.toml says version"):
        tasks.release(MockContext(), tag="v9.9.9")


def test_a_task_that_is_called_in_a_folder_below_runs_in_the_repository() -> None:
    words = [sys.executable, "-m", "invoke", "release", "--tag", "v9.9.9"]
    ended = subprocess.run(words, cwd=ROOT / "docs", capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.partition(":")[0]) == (2, "tag v9.9.9")


def test_the_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    changelog = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - today\n\n### Added\n\n- A\n\n## [1.1.0]\n\n- B\n"
    assert tasks.section(changelog, "1.2.0") == "### Added\n\n- A\n"
    assert tasks.section(changelog, "1.1.0") == "- B\n"
    with pytest.raises(Exit, match="no section"):
        tasks.section(changelog, "1.3.0")
