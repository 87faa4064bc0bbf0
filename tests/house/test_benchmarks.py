"""Benchmarks are commands too: they have help, refuse what they do not know, and take no failure for an answer."""

import asyncio
import importlib
import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.scoring import chaos
from benchmarks.scoring.memory import last_quarter
from benchmarks.scoring.speed import parts_a_cpu_second
from benchmarks.serving import compare, load, overload
from benchmarks.serving.served import percentile, served
from benchmarks.training import compression, label_errors
from tests.conftest import write_rows

from pigeonhole.command import call
from pigeonhole.configuration import compose
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.training.label_errors import LabelErrorsConfig

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
        ("scoring/chaos.py", ["bundle=nowhere"], "nowhere: manifest.json is missing"),
        ("scoring/memory.py", ["bundle=nowhere"], "nowhere: manifest.json is missing"),
        ("scoring/same_answers.py", ["bundle=here", "texts=nowhere.csv"], "texts=nowhere.csv"),
        ("scoring/speed.py", ["bundle=here", "texts=src"], "texts=src"),
        ("training/compression.py", ["bundle=here", "twin=nowhere"], "twin=nowhere: no model.safetensors"),
        ("training/label_errors.py", ["data=nowhere.csv"], "nowhere.csv: there is no such file"),
    ],
)
def test_a_value_that_means_nothing_is_refused_before_anything_is_measured(
    name: str, arguments: list[str], about: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert code_of(name, *arguments) == 2
    assert about in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: it says on which cores a process may run")
def test_a_benchmark_of_two_cores_says_so_on_one_before_it_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    for name, words in (
        ("serving/rollout.py", ["bundle=here", "other=there"]),
        ("serving/compare.py", ["bundle=here", "twin=there"]),
    ):
        assert code_of(name, *words) == 2
        assert "cores" in capsys.readouterr().err


def test_texts_that_are_too_few_for_a_batch_are_refused(tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.csv", [("where is my parcel", "delivery")] * 32)
    with pytest.raises(ConfigError, match="32 texts; more than 32 are needed"):
        compare._texts(str(few))


@pytest.mark.parametrize("texts", [1, 32, 33, 40])
def test_a_few_texts_make_whole_batches_too(texts: int) -> None:
    sizes = set()

    def answer(batch: Sequence[str]) -> list[int]:
        sizes.add(len(batch))
        return [0] * len(batch)

    assert compression._speed(answer, ["where is my parcel"] * texts, 0.001)["texts_a_cpu_s"] > 0
    assert sizes == {1, 32}


def test_a_job_of_chaos_that_does_not_end_is_a_failure_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "JOB_S", 0.1)
    monkeypatch.setattr(chaos, "SCORE", [sys.executable, "-c", "import time; time.sleep(60)"])
    with chaos.job([]) as process, pytest.raises(RunError, match=r"did not end within .* rows="):
        chaos.code_of(process)


def flips(data: Path, share: float) -> dict[str, Any]:
    rows = list(read_rows(DataConfig(path=str(data))))
    return label_errors.measure(rows, share, 0, compose(LabelErrorsConfig, "label_errors", ["model=tiny", "threads=1"]))


def test_planted_flips_are_found_though_a_text_stands_there_often_or_begins_as_a_formula(tmp_path: Path) -> None:
    texts = [(f"={word} {' '.join([word] * (number % 3 + 2))}", word) for number in range(60) for word in ("parcel", "invoice")]
    found = flips(write_rows(tmp_path / "rows.csv", texts), 0.1)
    assert (found["rows"], found["planted"]) == (120, 12)
    assert found["found"] == 12
    assert found["precision"] == {"12": 1.0}
    assert found["right_suggestion_among_found"] == 1


def test_no_precision_is_told_among_more_rows_than_were_planted() -> None:
    assert label_errors.tops(12) == [12]
    assert label_errors.tops(144) == [50, 100, 144]
    assert label_errors.tops(500) == [50, 100, 250, 500]


@pytest.mark.parametrize(
    ("rows", "share"), [([("a b", "x"), ("c d", "y")] * 9, 0.01), ([("a b", "x")] * 9, 0.5), ([("a b", "x"), ("c d", "y")], 0.5)]
)
def test_rows_in_which_nothing_can_be_flipped_are_refused(rows: list[tuple[str, str]], share: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 rows, two labels and one flip are needed"):
        flips(write_rows(tmp_path / "rows.csv", rows), share)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: /proc tells what the server took")
def test_a_bundle_that_no_server_opens_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("serving/workers.py", "bundle=nowhere") == 2
    assert "nowhere: manifest.json is missing" in capsys.readouterr().err


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
