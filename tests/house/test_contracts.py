import re
import shutil
import subprocess
import sys
import tomllib
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


def test_the_architecture_page_shows_every_room_and_names_what_each_contract_forbids() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (rooms,) = (contract for contract in contracts if contract["type"] == "layers")
    picture = page.split("```")[1]
    assert {
        name for layer in rooms["layers"] for name in re.findall(r"\w+", layer) if not re.search(rf"\b{name}[./]", picture)
    } == set()
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", page, re.MULTILINE))
    assert [contract["name"] for contract in contracts if contract["name"] not in rows] == []
    for contract in contracts:
        if "libraries" in contract["name"]:
            told = set(re.findall(r"[\w-]+", rows[contract["name"]].partition("not even")[0]))
            assert {name.replace("sklearn", "scikit-learn") for name in contract["forbidden_modules"]} <= told


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
