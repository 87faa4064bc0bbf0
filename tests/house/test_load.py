import os
import shutil
import sys
from pathlib import Path

import pytest
from monitoring.alarm import program
from tests.load import __main__ as load

from pigeonhole.errors import ConfigError, GateError, RunError


def test_the_numbers_of_a_run_are_those_of_locusts_table(tmp_path: Path) -> None:
    head = "Type,Name,Request Count,Failure Count,Requests/s,50%,95%,99%"
    (tmp_path / "stats.csv").write_text(f"{head}\nPOST,/predict,7,1,2.0,5,9,9\n,Aggregated,10,1,3.14,5,12,20\n")
    assert load.total(tmp_path / "stats.csv") == {
        "requests": 10,
        "failures": 1,
        "requests_per_s": 3.1,
        "p50_ms": 5,
        "p95_ms": 12,
        "p99_ms": 20,
    }


def test_a_run_in_which_nobody_was_answered_has_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "stats.csv").write_text("Name,Request Count,Failure Count,Requests/s,50%\nAggregated,0,0,0.0,N/A\n")
    with pytest.raises(RunError, match="no visitor was answered"):
        load.total(tmp_path / "stats.csv")


def test_without_a_bundle_the_next_step_is_told() -> None:
    with pytest.raises(ConfigError, match="bundle=: expected the folder of a bundle"):
        load.run([])


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_a_run_that_locust_refuses_fails_with_its_numbers(
    tmp_path: Path, sealed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server, and in Locust's place a program that leaves the table of a failed run."""
    out = tmp_path / "out"
    fake = tmp_path / "locust"
    table = tmp_path / "table.csv"
    table.write_text("Type,Name,Request Count,Failure Count,Requests/s,50%,95%,99%\n,Aggregated,3,1,1.0,5,6,7\n")
    fake.write_text(f"#!/bin/sh\ncp {table} {out}/load_stats.csv\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(GateError, match="a failed answer, or p95 over 1000 ms") as refused:
        load.run([f"bundle=file://{sealed_bundle}", f"out={out}"])  # as `train` prints it
    assert isinstance(refused.value.result, dict)
    assert refused.value.result["failures"] == 1


def test_a_server_that_does_not_start_is_visited_by_nobody(tmp_path: Path, sealed_bundle: Path) -> None:
    broken = shutil.copytree(sealed_bundle, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match="the server ended with 2; what it said stands above"):
        load.run([f"bundle={broken}", f"out={tmp_path / 'out'}"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_the_numbers_of_an_earlier_run_are_not_told_as_those_of_one_that_broke(
    tmp_path: Path, sealed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "load_stats.csv").write_text(
        "Type,Name,Request Count,Failure Count,Requests/s,50%,95%,99%\n,Aggregated,3,0,1.0,5,6,7\n"
    )
    fake = tmp_path / "locust"
    fake.write_text("#!/bin/sh\nexit 2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RunError, match="locust ended with 2 and left no table"):
        load.run([f"bundle={sealed_bundle}", f"out={tmp_path}"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
@pytest.mark.parametrize(("before_ms", "fails"), [(5, False), (700, False), (400, True)])
def test_a_server_that_is_slower_than_that_of_another_commit_fails(
    before_ms: int, fails: bool, tmp_path: Path, sealed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of Locust a program that leaves a table: 600 ms today, and what the other commit's server took."""
    fake = tmp_path / "locust"
    head = "Type,Name,Request Count,Failure Count,Requests/s,50%,95%,99%"
    fake.write_text(
        '#!/bin/sh\nwhile [ "$1" != --csv ]; do shift; done\n'
        f'case "$2" in *before) p95={before_ms};; *) p95={600 if before_ms > 5 else 24};; esac\n'
        f'printf "%s\\n" "{head}" ",Aggregated,3,0,1.0,5,$p95,7" > "$2_stats.csv"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(load, "server_of", lambda _: program(("serve",)))
    given = [f"bundle={sealed_bundle}", f"out={tmp_path / 'out'}", f"against={tmp_path}"]
    if fails:
        with pytest.raises(GateError, match="p95 is 600 ms, and was 400 ms in"):
            load.run(given)
        return
    found = load.run(given)
    assert found is not None
    assert found["before"]["p95_ms"] == before_ms


def test_what_is_no_checkout_is_not_compared_with(tmp_path: Path, sealed_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="expected a checkout; `git worktree add"):
        load.run([f"bundle={sealed_bundle}", f"against={tmp_path}"])
