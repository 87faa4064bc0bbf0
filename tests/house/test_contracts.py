import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def contracts_of(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of a folder that holds pyproject.toml and src."""
    lint = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", lint, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.csv"))
    return tmp_path


def test_contracts_hold() -> None:
    answer = contracts_of(ROOT)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("errors.py", "import pigeonhole.storage", "imports point downward and no wing imports another BROKEN"),
        ("novelty.py", "", "imports point downward and no wing imports another BROKEN"),
        ("serving/app.py", "import pigeonhole.training.config", "imports point downward and no wing imports another BROKEN"),
        ("command.py", "import fsspec", "only storage.py imports fsspec and its clouds BROKEN"),
        ("serving/app.py", "def late() -> None:\n    import torch", "serving knows nothing of training's libraries BROKEN"),
        ("bundle.py", "import pandas", "serving knows nothing of training's libraries BROKEN"),
    ],
    ids=["upward", "no place", "sideways", "fsspec", "torch, late", "pandas, by way of bundle.py"],
)
def test_a_planted_fault_breaks_its_contract(copy: Path, module: str, line: str, broken: str) -> None:
    with (copy / "src/pigeonhole" / module).open("a") as stream:
        stream.write(f"\n{line}\n")
    answer = contracts_of(copy)
    assert answer.returncode == 1
    assert broken in answer.stdout
