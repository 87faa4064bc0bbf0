import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scan() -> ModuleType:
    spec = importlib.util.spec_from_file_location("secret_scan", ROOT / ".github/secret_scan.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[str], Path]:
    """A history in which a line was added and, one commit later, taken out again."""

    def git(*words: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True, capture_output=True)

    def make(line: str) -> Path:
        git("init", "--quiet")
        (tmp_path / "a.py").write_text(f"{line}\n")
        git("add", "a.py")
        git("commit", "--quiet", "--message=one")
        git("rm", "--quiet", "a.py")
        git("commit", "--quiet", "--message=two")
        return tmp_path

    return make


# Put together here, so that this file itself holds none of them.
@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("aws = '" + "AKIA" + "IOSFODNN7ABCDEFG'", "AWS Access Key"),
        ("-----BEGIN " + "PRIVATE KEY-----", "Private Key"),
        ("api" + "_key = 'kq8d6c1f0e9b7a5d3c2b1a0f9e8d7c6b5a4'", "key or password"),
        ("found '" + "ghp_" + "a1B2" * 9 + "'", "GitHub Token"),
        ("key = '" + "AIza" + "Sy0123456789" * 2 + "abcdefghijk'", "Google API key"),
    ],
)
def test_a_secret_that_was_taken_out_again_is_still_found_and_not_shown(
    line: str, kind: str, scan: ModuleType, repository: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = repository(line)
    assert [found.split(" ", 1)[1] for found in scan.find_secrets(folder)] == [f"a.py: {kind}"]
    assert scan.main([str(folder)]) == 4
    assert line not in capsys.readouterr().err


SECRET = "AK" + "IA" + "IOSFODNN7ABCDEFG"


@pytest.mark.parametrize("before", ["++ ", "one\f", "one\r", "one\u2028"])
def test_no_letter_before_a_secret_hides_it(before: str, scan: ModuleType, repository: Callable[[str], Path]) -> None:
    assert len(scan.find_secrets(repository(f"{before}aws = '{SECRET}'"))) == 1


def test_a_secret_that_came_with_a_merge_alone_is_found(scan: ModuleType, repository: Callable[[str], Path]) -> None:
    folder = repository("nothing")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false"]

    def call(*words: str) -> None:
        subprocess.run([*git, *words], check=True, capture_output=True)

    call("checkout", "--quiet", "-b", "side", "HEAD~1")
    call("commit", "--quiet", "--allow-empty", "--message=side")
    call("checkout", "--quiet", "-")
    call("merge", "--no-commit", "--no-ff", "side")
    (folder / "b.py").write_text(f"aws = '{SECRET}'\n")
    call("add", "b.py")
    call("commit", "--quiet", "--message=merge")
    assert [found.split(" ", 1)[1] for found in scan.find_secrets(folder)] == ["b.py: AWS Access Key"]


def test_a_history_that_is_not_all_there_is_no_history_without_secrets(
    scan: ModuleType, repository: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = repository("nothing")
    subprocess.run(
        ["git", "clone", "--quiet", "--depth=1", folder.as_uri(), tmp_path / "shallow"], check=True, capture_output=True
    )
    assert scan.main([str(tmp_path / "shallow")]) == 2
    assert "git fetch --unshallow" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nowhere"], ["one", "two"]])
def test_what_is_no_repository_is_said(
    arguments: list[str], scan: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert scan.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_is_the_scans_own(scan: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan.main(["--help"]) == 0
    assert "[FOLDER]" in capsys.readouterr().out


def test_a_history_without_one_passes(scan: ModuleType, repository: Callable[[str], Path]) -> None:
    folder = repository("answer = 42  # the name of a secret: wandb-api-key")
    assert scan.main([str(folder)]) == 0


def test_no_secret_was_ever_committed_here(scan: ModuleType) -> None:
    assert scan.find_secrets(ROOT) == []
