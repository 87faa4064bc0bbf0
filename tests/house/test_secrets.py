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


def test_a_history_without_one_passes(scan: ModuleType, repository: Callable[[str], Path]) -> None:
    folder = repository("answer = 42  # the name of a secret: wandb-api-key")
    assert scan.main([str(folder)]) == 0


def test_no_secret_was_ever_committed_here(scan: ModuleType) -> None:
    assert scan.find_secrets(ROOT) == []
