"""The short version; the long one is `uv run chaos`, and reports/ say how it went."""

import json
import sys
from pathlib import Path

import pytest
from tests.serving.conftest import make_bundle

from pigeonhole.chaos import chaos, promises
from pigeonhole.chaos.promises import Outcome, Plan
from pigeonhole.command import call

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


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


def test_without_a_bundle_the_one_in_production_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_REGISTRY", str(tmp_path))
    assert call(chaos.run, ["promise=orderly_end"]) == 2
