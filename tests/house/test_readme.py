import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)  # (language, body)
MADE = {ROOT / path for path in re.findall(r"^/(docs/reference/\S+)$", (ROOT / ".gitignore").read_text(), re.MULTILINE)}
"""By docs/reference.py."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("reports/*.md"),
]
PAGES = [page for page in PAGES if page not in MADE]


def tree() -> dict[str, str]:
    """Path -> phrase, from the README's file tree."""
    block = next(body for language, body in BLOCKS if not language)
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        names, phrase = re.split(r" {2,}", line.strip(), maxsplit=1)
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        found |= {"".join([*folders, name]): phrase for name in names.split()}
        folders.append(names.split()[0])
    return found


def test_every_path_of_the_tree_exists_and_has_a_phrase() -> None:
    assert len(tree()) > 30
    assert [path for path, phrase in tree().items() if not (ROOT / path).exists() or not phrase] == []
    assert [path for path in tree() if (ROOT / path).is_dir() != path.endswith("/")] == []


def test_every_room_stands_in_the_tree() -> None:
    package = ROOT / "src/pigeonhole"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and not path.name.startswith("__")}
    shown = {path.removeprefix("src/pigeonhole/") for path in tree()}
    assert modules | folders <= shown
    assert {f"configs/{path.name}/" for path in (ROOT / "configs").iterdir() if path.is_dir()} <= set(tree())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)", page.read_text(encoding="utf-8"))
    there = {link: (page.parent / link).resolve() if link else page for link, _ in links}
    assert [link for link, file in there.items() if not file.exists() and file not in MADE] == []
    assert [f"{link}{anchor}" for link, anchor in links if anchor and anchor not in anchors(there[link])] == []


def anchors(page: Path) -> set[str]:
    """As GitHub and the documentation site make them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_measured_number_has_its_command_and_the_report_of_its_date() -> None:
    table = re.search(r"^## Measured\n.*?\n\|---\|---\|---\|---\|\n(.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    assert table
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]
    assert len(rows) >= 6
    for _, command, _, report in rows:
        assert command == "the same" or re.fullmatch(r"`uv run [^`]+`", command), command
        link = re.fullmatch(r"\[([\d-]+)\]\((reports/\1-[\w-]+\.md)\)", report)
        assert link, report
        told = (ROOT / link[2]).read_text(encoding="utf-8")
        assert command == "the same" or command.strip("`").split(" bundle=")[0] in told


def test_the_picture_is_the_one_that_its_script_draws() -> None:
    command = [sys.executable, "-c", "import docs.corridor, sys; sys.stdout.buffer.write(docs.corridor.draw_corridor().encode())"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    assert (ROOT / "docs/corridor.svg").read_bytes() == drawn
