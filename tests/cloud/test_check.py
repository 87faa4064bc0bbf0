"""`invoke cloud.check` knows every cloud file, and what became of each check."""

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from tests.cloud import __main__ as check

FOLDERS = (".ci", ".devcontainer", ".dvc", ".github", "cloudbuild", "cloudrun", "dockerfiles", "monitoring", "rayclusters")
FILES = (".dockerignore", ".dvcignore", ".pre-commit-config.yaml", "compose.yaml", "data.dvc")


def test_every_cloud_file_stands_in_one_row() -> None:
    listed = subprocess.run(["git", "ls-files", *FOLDERS, *FILES], cwd=check.ROOT, capture_output=True, text=True, check=True)
    globs = [glob for row in check.ROWS for glob in row.files.split()]
    # A star of fnmatch passes slashes, so the deeper globs are part of the shallow ones: at least one row, never none.
    assert [name for name in listed.stdout.split() if not any(fnmatch(name, glob) for glob in globs)] == []
    assert [glob for glob in globs if not list(check.ROOT.glob(glob))] == []


def test_every_row_names_tests_and_steps_that_are_there() -> None:
    steps = check.steps("serve", Path("bundle"))
    for row in check.ROWS:
        assert [name for name in row.by if name not in steps and not (check.ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("lines", "passed", "failed", "left_out"),
    [
        ("print('{}')", 1, 0, []),
        ("print('left out here: the images train')", 1, 0, ["left out here: the images train"]),
        ("raise SystemExit(3)", 0, 1, []),
        ("print('SKIPPED: no container can be made here: no')", 0, 0, ["SKIPPED: no container can be made here: no"]),
    ],
)
def test_a_step_passes_fails_or_is_left_out_by_name(lines: str, passed: int, failed: int, left_out: list[str]) -> None:
    result = check.run_step("step", [sys.executable, "-c", lines])
    assert (result.passed, result.failed, result.left_out) == (passed, failed, left_out)


def test_a_row_adds_up_its_checks_and_the_table_has_a_line_for_it() -> None:
    row = check.Row("a.yaml", ("real run",), "run", ("x", "y"), "roles")
    told = check.told(row, {"x": check.Result(1.25, 2), "y": check.Result(2.0, 0, 1, ["no engine"])})
    assert (told["passed"], told["failed"], told["seconds"], told["left_out"]) == (2, 1, 3.2, ["no engine"])
    assert check.table([told]).splitlines()[-1] == "| a.yaml | run | real run | 2 | 1 | no engine | 3.2 | roles |"
