"""Benchmarks are commands too: they have help, refuse what they do not know, and take no failure for an answer."""

import asyncio
import importlib
import math
import statistics
import sys
from pathlib import Path

import pytest
from benchmarks.scoring.memory import last_quarter
from benchmarks.scoring.speed import parts_a_cpu_second
from benchmarks.serving import load, overload
from benchmarks.serving.served import percentile, served

from pigeonhole.command import call
from pigeonhole.errors import RunError

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
FILES = {file.relative_to(BENCHMARKS).as_posix(): file.read_text(encoding="utf-8") for file in BENCHMARKS.rglob("*.py")}
COMMANDS = sorted(name for name, program in FILES.items() if "command(run)" in program)
CHILDREN = {"training/hf_trainer.py", "training/ours.py", "serving/load.py"}  # the program that starts them tells them what to do


def code_of(name: str, *arguments: str) -> int:
    return call(importlib.import_module(f"benchmarks.{name.removesuffix('.py').replace('/', '.')}").run, list(arguments))


def test_what_is_run_by_itself_is_a_command() -> None:
    begun = {name for name, program in FILES.items() if "__main__" in program and not name.startswith("serving/peers/")}
    assert begun - set(COMMANDS) == CHILDREN


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_keys(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(name, "--help") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "\nkeys:\n  " in printed.out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_key_that_it_does_not_know_is_one_line_and_exit_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(name, "zebra=1") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: zebra=1: ") or "bundle=" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments", "about"),
    [
        ("decisions/promise.py", ["bundle=here", "targets=high"], "targets=high"),
        ("decisions/promise.py", ["bundle=here", "repeats=0"], "repeats=0"),
        ("drift/detection.py", ["bundle=here", "trials=many"], "trials=many"),
        ("drift/detection.py", ["bundle=here", "clinc150=FILE"], "banking77="),
        ("drift/window.py", ["bundle=here", "compacted=true"], "compacted=true"),
        ("log/review.py", ["audit_share=2"], "audit_share=2"),
        ("scoring/chaos.py", ["bundle=here", "kills=many"], "kills=many"),
        ("scoring/memory.py", ["bundle=here", "rows=5,many"], "rows=5,many"),
        ("scoring/memory.py", ["bundle=here", "actors=none"], "actors=none"),
        ("scoring/same_answers.py", ["bundle=here", "texts=pyproject.toml"], "column=text"),
        ("scoring/speed.py", ["bundle=here", "texts=FILE", "what=everything"], "what=everything"),
        ("scoring/speed.py", ["bundle=here", "texts=FILE", "what=pool,pipeline"], "twin="),
        ("serving/compare.py", ["bundle=here", "twin=here", "servers=int7"], "servers=int7"),
        ("training/compare.py", ["contenders=theirs"], "contenders=theirs"),
    ],
)
def test_a_value_that_means_nothing_is_refused_before_anything_is_measured(
    name: str, arguments: list[str], about: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert code_of(name, *arguments) == 2
    assert about in capsys.readouterr().err


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    numbers = [float(number) for number in range(100, 0, -1)]
    assert [percentile(numbers, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([3.0, 1.0], 0.5) == 1
    assert math.isnan(percentile([], 0.5))


def test_the_last_quarter_is_there_however_short_the_job() -> None:
    assert last_quarter([float(number) for number in range(9)]) == statistics.mean([6, 7])  # the last one saw the job end
    assert (last_quarter([5.0]), last_quarter([4.0, 1.0])) == (5, 4)


def test_a_job_that_was_over_at_once_has_no_rate() -> None:
    assert parts_a_cpu_second([(2, 1.0), (3, 2.0), (3, 2.5), (5, 4.0)]) == 1
    for samples in ([], [(2, 1.0)], [(2, 1.0), (3, 2.0)]):
        with pytest.raises(RunError, match="rows="):
            parts_a_cpu_second(samples)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: /proc tells what the server took")
def test_refusals_are_no_capacity(sealed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "REQUESTS", [b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"])
    with pytest.raises(RunError, match="not answered with 200"), served(tmp_path, PIGEONHOLE_BUNDLE=str(sealed_bundle)) as server:
        asyncio.run(overload.measure(server, 1.0, 2.0))


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_a_server_that_says_much_is_not_stopped_by_it_and_is_quoted_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talker = "import sys; sys.stderr.write('x' * 200_000 + 'the reason'); sys.exit(3)"
    monkeypatch.setattr("benchmarks.serving.served.PROGRAM", talker)
    with pytest.raises(RunError, match=r"serve ended with 3.*the reason"), served(tmp_path):
        pytest.fail("it never was ready")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the server's memory is read from /proc")
@pytest.mark.parametrize("how", [{"connections": 2}, {"per_s": 20}])
def test_a_failure_is_neither_a_latency_nor_a_part_of_the_rate(how: dict[str, int], sealed_bundle: Path, tmp_path: Path) -> None:
    with served(tmp_path, PIGEONHOLE_BUNDLE=str(sealed_bundle)) as server:
        told = {"url": f"http://127.0.0.1:{server.port}/predict", "seconds": 1, **how}
        half = asyncio.run(load.measure({**told, "bodies": [{"text": "where is my parcel"}, {"nothing": 1}]}))
        assert 0 < half["failures"] < half["answered"]
        assert half["requests"] <= half["answered"] - half["failures"]
        with pytest.raises(SystemExit, match="no right answer"):
            asyncio.run(load.measure({**told, "bodies": [{"nothing": 1}]}))
