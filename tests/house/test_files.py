import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = {"uv.lock"}


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every tracked file that is text, by its name."""
    found = {name: (ROOT / name).read_bytes() for name in tracked_files() if name not in GENERATED}
    return {name: data.decode() for name, data in found.items() if b"\0" not in data}


def test_no_file_is_larger_than_a_megabyte() -> None:
    assert [name for name in tracked_files() if name not in GENERATED and (ROOT / name).stat().st_size > 1_000_000] == []


def test_no_path_of_a_machine_is_tracked(texts: dict[str, str]) -> None:
    machine = re.compile(r"(?<![\w./-])/(home|root|work|Users|mnt|opt)/\w")
    assert [(name, found.group()) for name, text in texts.items() for found in machine.finditer(text)] == []


def test_no_registry_host_is_tracked(texts: dict[str, str]) -> None:
    host = re.compile(r"(index-url|find-links|files\.pythonhosted|pypi\.org|registry\.npmjs|devpi|artifactory)", re.IGNORECASE)
    own = Path(__file__).relative_to(ROOT).as_posix()
    assert [(name, found.group()) for name, text in texts.items() if name != own for found in host.finditer(text)] == []


def test_text_files_end_with_one_newline_and_use_unix_line_ends(texts: dict[str, str]) -> None:
    assert [name for name, text in texts.items() if text and (not text.endswith("\n") or text.endswith("\n\n"))] == []
    assert [name for name, text in texts.items() if "\r\n" in text and not name.startswith("tests/")] == []


def test_generated_folders_are_ignored_at_the_root_only() -> None:
    def ignored(name: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", name], cwd=ROOT, check=False).returncode == 0

    assert all(ignored(f"{folder}/file") for folder in ("data", "runs", "registry", "log", "wandb", ".venv"))
    assert not any(ignored(f"configs/{folder}/file.yaml") for folder in ("data", "runs", "registry", "log"))
