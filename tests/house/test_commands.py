import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
NAMES = sorted(SCRIPTS)


def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = shutil.which(name, path=str(Path(sys.executable).parent))
    assert script, f"{name} is not installed beside {sys.executable}"
    return subprocess.run([script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_installed_package_has_these_commands() -> None:
    installed = importlib.metadata.distribution("pigeonhole").entry_points.select(group="console_scripts")
    assert {point.name: point.value for point in installed} == SCRIPTS


@pytest.mark.parametrize("name", NAMES)
def test_help_is_printed_to_stdout(name: str) -> None:
    answer = call(name, "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert name in answer.stdout


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_no_command_knows_is_one_line_and_exit_2(name: str) -> None:
    answer = call(name, "zebra=1")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.startswith("error: ")
    assert "zebra" in answer.stderr
