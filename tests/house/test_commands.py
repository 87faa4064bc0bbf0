import functools
import importlib.metadata
import os
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


@functools.cache
def help_of(name: str) -> subprocess.CompletedProcess[str]:
    return call(name, "--help")


def test_the_installed_package_has_these_commands() -> None:
    installed = importlib.metadata.distribution("pigeonhole").entry_points.select(group="console_scripts")
    assert {point.name: point.value for point in installed} == SCRIPTS


@pytest.mark.parametrize("module", sorted(value.removesuffix(":main") for value in SCRIPTS.values()))
def test_a_commands_module_is_it_too(module: str) -> None:
    """`python -m` and `torchrun -m` of it would do nothing, and end with 0."""
    source = (ROOT / "src" / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert source.endswith('\n\nif __name__ == "__main__":\n    main()\n')


@pytest.mark.parametrize("name", NAMES)
def test_help_is_printed_to_stdout(name: str) -> None:
    answer = help_of(name)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert name in answer.stdout
    assert max(map(len, answer.stdout.splitlines())) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_the_command_is_for_before_it_lists_anything(name: str) -> None:
    first, second = help_of(name).stdout.split("\n\n")[:2]
    assert first.startswith("usage: ")
    assert second.startswith(("keys:", "groups:")) is False


@pytest.mark.parametrize("name", ["train", "score", "serve"])
def test_help_that_nobody_reads_to_its_end_is_no_error(name: str) -> None:
    script = shutil.which(name, path=str(Path(sys.executable).parent))
    read, write = os.pipe()
    os.close(read)
    answer = subprocess.run([str(script), "--help"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_no_command_knows_is_one_line_and_exit_2(name: str) -> None:
    answer = call(name, "zebra=1")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.startswith("error: ")
    assert "zebra" in answer.stderr
