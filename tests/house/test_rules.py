"""The rules of pyproject.toml are as strict as CONTRIBUTING.md and reports/checklist.md say."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
ROOMS = {"src", "tests", "frontend", "docs", "benchmarks", "dockerfiles", "monitoring"}


def test_types_are_strict_and_no_module_of_ours_is_excused() -> None:
    mypy = TOOLS["mypy"]
    assert mypy["strict"]
    assert set(mypy["files"]) >= ROOMS
    assert [mypy.get(name) for name in ("ignore_errors", "disable_error_code", "follow_imports")] == [None] * 3
    assert [each.keys() for each in mypy["overrides"]] == [{"module", "ignore_missing_imports"}]
    ours = {"pigeonhole", *ROOMS, "tasks"}
    assert [name for name in mypy["overrides"][0]["module"] if name.split(".")[0] in ours] == []


def test_coverage_has_its_floor_and_leaves_no_module_out() -> None:
    coverage = TOOLS["coverage"]
    assert coverage["run"]["source"] == ["pigeonhole"]
    assert coverage["report"]["fail_under"] >= 90
    assert {"omit", "include", "exclude_also", "exclude_lines"} & (coverage["run"].keys() | coverage["report"].keys()) == set()


def test_style_names_and_docstrings_are_asked_of_every_file() -> None:
    lint = TOOLS["ruff"]["lint"]
    families = {"D", "E", "F", "N", "W"}
    assert families <= set(lint["select"])
    assert families & set(lint["ignore"]) == set()
    assert "exclude" not in TOOLS["ruff"]
    assert lint["per-file-ignores"] == {"tests/**": ["S", "ARG", "D"]}
