"""The short version; the long one is `uv run chaos`, and reports/ say how it went."""

import json
import signal
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from tests.serving.conftest import make_bundle

from pigeonhole.chaos import chaos, promises, world
from pigeonhole.chaos.promises import Outcome, Plan
from pigeonhole.chaos.world import Acknowledged, Process, Server, until_told
from pigeonhole.command import call
from pigeonhole.errors import RunError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL, not Windows")


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos") / "words"
    make_bundle(folder)
    return folder


def test_nothing_acknowledged_is_missing_after_an_orderly_end_with_kills_on_the_way(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(chaos.run, ["promise=orderly_end", f"bundle={small_bundle}", "trials=1", "records=1500"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["promise"], line["kept"], line["missing"]) == ("orderly_end", True, 0)
    assert line["in_log"] >= line["acknowledged"] >= 750


def test_a_promise_that_is_not_kept_is_told_and_ends_with_3(
    monkeypatch: pytest.MonkeyPatch, small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(plan: Plan) -> Outcome:
        return Outcome("orderly_end", False, "", {"missing": 1})

    def unable(plan: Plan) -> Outcome:
        return Outcome("full_disk", None, "this machine has no disk")

    monkeypatch.setattr(chaos, "PROMISES", {"orderly_end": lose, "full_disk": unable})
    assert call(chaos.run, [f"bundle={small_bundle}"]) == 3
    told = capsys.readouterr()
    assert [json.loads(line) for line in told.out.splitlines()] == [
        {"promise": "orderly_end", "kept": False, "missing": 1},
        {"promise": "full_disk", "kept": None},
    ]
    assert told.err.splitlines() == ["full_disk: not tried, this machine has no disk", "error: not kept: orderly_end"]


def test_level_none_is_seen_to_lose_and_the_audit_names_what_is_missing(small_bundle: Path, tmp_path: Path) -> None:
    """An audit that finds nothing missing where something is would make every promise above worthless."""
    # One kill in four or so comes just after the records were written; that six in a row do is one run in 4,000.
    for seed in range(6):
        outcome = promises.level_none(Plan(str(small_bundle), tmp_path / str(seed), seed, trials=1, records=600))
        assert outcome.kept
        if outcome.numbers["missing"]:
            break
    assert 0 < outcome.numbers["missing"] <= outcome.numbers["acknowledged"]


def test_a_trial_that_fails_leaves_no_process_behind(small_bundle: Path, tmp_path: Path) -> None:
    servers: list[Server] = []

    def fail() -> None:
        with promises.stage(Plan(str(small_bundle), tmp_path), "failing") as on:
            servers.append(on.server())
            assert servers[0].alive
            raise RunError("the server answered 3 of 9")

    with pytest.raises(RunError, match="3 of 9"):
        fail()
    alive = servers[0].alive
    servers[0].send(signal.SIGKILL)
    assert not alive


def test_a_server_that_goes_on_answering_is_waited_for_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "QUIET_S", 1.0)
    told = Acknowledged()

    def answer() -> None:
        for number in range(8):
            time.sleep(0.25)
            told.add("200", [str(number)], time.monotonic())

    server = Process([sys.executable, "-c", "import time; time.sleep(100)"])
    clients = threading.Thread(target=answer)
    clients.start()
    until_told(told, 8, server)
    clients.join()
    with pytest.raises(RunError, match="8 of 9"):
        until_told(told, 9, server)
    server.send(signal.SIGKILL)
    server.wait()


def test_a_remote_bundle_is_served_from_a_copy_as_the_trial_s_store_takes_the_place_of_its_own(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = fsspec.filesystem("memory")
    for path in small_bundle.iterdir():
        remote.pipe_file(f"/bundles/words/{path.name}", path.read_bytes())
    served: list[str] = []

    def note(plan: Plan) -> Outcome:
        served.append(plan.bundle)
        return Outcome("orderly_end", True)

    monkeypatch.setattr(chaos, "PROMISES", {"orderly_end": note, "full_disk": note})
    assert call(chaos.run, ["bundle=memory://bundles/words"]) == 0
    assert all(url.startswith("file://") for url in served)
    assert (Path(served[1].removeprefix("file://")) / "manifest.json").exists()
    assert call(chaos.run, ["bundle=memory://bundles/nowhere"]) == 2


def test_of_no_answers_there_is_no_percentile() -> None:
    assert promises.milliseconds([]) is None
    assert promises.milliseconds([0.5]) == 500.0


def test_without_a_bundle_the_one_in_production_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_REGISTRY", str(tmp_path))
    assert call(chaos.run, ["promise=orderly_end"]) == 2
