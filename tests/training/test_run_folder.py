import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pigeonhole.errors import ConfigError
from pigeonhole.training.run_folder import CHECKPOINT, FINGERPRINT, RESULT, RUNS, RunFolder, open_run_folder, require_run_folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_same_run_goes_on_in_the_folder_where_it_was_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = open_run_folder(None, "tickets", "abc", resume=True)
    stopped.lock.release()
    again = open_run_folder(None, "tickets", "abc", resume=True)
    assert again.path == stopped.path
    assert "where the same run was stopped; resume=never begins a new one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "fingerprint", "resume"), [("tickets", "abd", True), ("other", "abc", True), ("tickets", "abc", False)]
)
def test_another_run_or_one_that_shall_begin_anew_gets_a_folder_of_its_own(name: str, fingerprint: str, resume: bool) -> None:
    stopped = open_run_folder(None, "tickets", "abc", resume=True)
    stopped.lock.release()
    assert open_run_folder(None, name, fingerprint, resume=resume).path != stopped.path


def test_a_run_that_shall_begin_anew_in_a_folder_of_its_own_goes_on_from_nothing() -> None:
    for resume in (True, False):
        folder = open_run_folder("mine", "tickets", "abc", resume=resume)
        checkpoint = folder.path / CHECKPOINT
        assert not checkpoint.exists()
        checkpoint.mkdir()
        (checkpoint / "progress.safetensors").write_bytes(b"of the run that was stopped")
        folder.lock.release()
        goes_on = open_run_folder("mine", "tickets", "abc", resume=True)
        assert checkpoint.exists()
        goes_on.lock.release()


def test_a_finished_run_is_left_alone() -> None:
    finished = open_run_folder(None, "tickets", "abc", resume=True)
    finished.lock.release()
    require_run_folder(str(finished.path))  # not yet
    (finished.path / RESULT).write_text("{}")
    assert open_run_folder(None, "tickets", "abc", resume=True).path != finished.path
    with pytest.raises(ConfigError, match="holds a finished run; choose another folder"):
        require_run_folder(str(finished.path))


def test_a_run_that_is_at_work_is_left_alone() -> None:
    at_work = open_run_folder(None, "tickets", "abc", resume=True)
    assert open_run_folder(None, "tickets", "abc", resume=True).path != at_work.path
    with pytest.raises(ConfigError, match=r"another run is at work there; wait for it"):
        open_run_folder(str(at_work.path), "tickets", "abc", resume=True)


def test_runs_that_begin_at_one_moment_have_a_folder_each() -> None:
    at_once = threading.Barrier(8)

    def begin(_: int) -> RunFolder:
        at_once.wait()
        return open_run_folder(None, "tickets", "abc", resume=False)

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(begin, range(8)))
    assert len({folder.path for folder in folders}) == 8
    assert {folder.path.parent for folder in folders} == {RUNS.resolve()}


def test_the_newest_of_several_stopped_runs_goes_on_that_is_not_at_work_already() -> None:
    days = [Path(f"runs/2026010{day}-120000-tickets") for day in (2, 3, 1)]
    for path in days:
        path.mkdir(parents=True)
        (path / FINGERPRINT).write_text("tickets abc")
    Path("runs/20260104-120000-tickets").mkdir()  # killed before it had said which run it is
    found = [open_run_folder(None, "tickets", "abc", resume=True) for _ in range(3)]
    assert [folder.path for folder in found] == [days[place].resolve() for place in (1, 0, 2)]


def test_one_of_several_stopped_runs_goes_on() -> None:
    folders = [open_run_folder(None, "tickets", "abc", resume=False) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    for folder in folders:
        folder.lock.release()
    assert open_run_folder(None, "tickets", "abc", resume=True).path in {folder.path for folder in folders}
