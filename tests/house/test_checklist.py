import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "reports/checklist.md").read_text(encoding="utf-8")
SOURCES = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
TESTS = {name for source in SOURCES for name in re.findall(r"def (test_\w+)\(", source)}
MODULES = range(2, 33)
NOT_ASKED = {3, 4, 20}  # the course has no box for them


def rows() -> list[list[str]]:
    """The cells of the table, by row."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| box")]
    return [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines]


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named
    assert named - TESTS == set()


def test_every_box_has_a_place_and_a_proof() -> None:
    assert len(rows()) > 45
    assert [cells for cells in rows() if len(cells) != 3 or not re.search(r"`test_\w+`|\]\(", cells[2])] == []


def test_no_module_of_the_course_is_left_out() -> None:
    told = {int(number) for cells in rows() for number in re.findall(r"\bM(\d+)", cells[0])}
    assert told == set(MODULES) - NOT_ASKED
