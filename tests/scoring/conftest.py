import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import tiny_rows

from pigeonhole.scoring.config import ScoreConfig


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, lines: list[str]) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    return path


@pytest.fixture
def texts() -> list[str]:
    """300 texts of many lengths, all different."""
    rows = [text for text, _ in tiny_rows()]
    return rows + [" ".join(rows[number : number + 1 + number % 9]) + " indeed" for number in range(150)]


@pytest.fixture
def config(sealed_bundle: Path, tmp_path: Path) -> ScoreConfig:
    return ScoreConfig(bundle=str(sealed_bundle), input=str(tmp_path / "in.csv"), output=str(tmp_path / "out"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray lives in an environment of its own: `uv run --isolated --group score pytest -n 0 tests/scoring`."""
    if importlib.util.find_spec("ray") is None:
        for item in items:
            if item.path.name in ("test_engine.py", "test_score.py") and item.path.parent.name == "scoring":
                item.add_marker(pytest.mark.skip(reason="needs the score group, see TEST_SCORING in tasks.py"))
