import json
import subprocess
import sys
from pathlib import Path

import pytest

import pigeonhole.dataset
from pigeonhole.command import call
from pigeonhole.dataset.materialise import FILES, materialise, run

PACKAGED = Path(pigeonhole.dataset.__file__).parent / "tickets"


def test_files_are_equal_to_the_package_byte_for_byte(tmp_path: Path) -> None:
    materialise(str(tmp_path / "data"))
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "data" / name).read_bytes() == (PACKAGED / name).read_bytes()


def test_second_run_changes_nothing_and_mends_what_was_changed(tmp_path: Path) -> None:
    first = materialise(str(tmp_path))
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in FILES}
    (tmp_path / "shifted.csv").write_text("changed")
    assert materialise(str(tmp_path)) == first
    assert (tmp_path / "tickets.csv").stat().st_mtime_ns == times["tickets.csv"]
    assert (tmp_path / "shifted.csv").read_bytes() == (PACKAGED / "shifted.csv").read_bytes()


def test_module_runs_as_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pigeonhole.dataset.materialise"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert sorted(json.loads(done.stdout)) == ["data/out_of_scope.csv", "data/shifted.csv", "data/tickets.csv"]
    assert (tmp_path / "data" / "tickets.csv").is_file()


def test_help_and_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, ["--help"]) == 0
    assert "usage:" in capsys.readouterr().out
    assert call(run, ["a", "b"]) == 2
    assert "expected one folder" in capsys.readouterr().err
