import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.scoring.conftest import write_csv, write_jsonl

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import call
from pigeonhole.errors import RunError
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.plan import make_plan, make_shards, settle
from pigeonhole.scoring.score import run, score
from pigeonhole.scoring.shard import answer, commit
from pigeonhole.scoring.source import Wanted, find_files, read, scan

SCORE = [sys.executable, "-c", "from pigeonhole.scoring.score import main; main()"]


def command(bundle: Path, source: Path, output: Path, *more: str) -> list[str]:
    return [f"bundle={bundle}", f"input={source}", f"output={output}", "text=text", *more]


def ran(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SCORE, *arguments], capture_output=True, text=True, check=False)


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*SCORE, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def outcome(output: Path) -> dict[str, bytes]:
    """Every file but the manifest, which tells when the job began."""
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != "_manifest.json"}


def wait_for(number: int, output: Path, process: subprocess.Popen[bytes]) -> None:
    """Until so many parts are there."""
    until = time.monotonic() + 120
    while len(list(output.glob("part-*"))) < number:
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)


def workers_of(pid: int) -> list[int]:
    """The actors that score, among the processes below one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            title = stat.with_name("cmdline").read_bytes()
            if b"Scorer" in title and pid in _ancestors(int(stat.parent.name)):
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows in three files, eight of them bad."""
    folder = tmp_path_factory.mktemp("table")
    generator = random.Random(1)
    words = ["parcel", "invoice", "password", "courier", "charge", "login", "where", "is", "my", "not", "again", "please"]
    number = 0
    for file in range(3):
        rows: list[Any] = []
        for _ in range(1000):
            text = " ".join(generator.choices(words, k=generator.randint(1, 30)))
            rows.append({"id": number, "text": None if number % 400 == 7 else f"{text} {number}"})
            number += 1
        write_jsonl(folder / f"{file}.jsonl", rows)
    return folder


OPTIONS = ["id=id", "probabilities=true", "shard_rows=60"]


@pytest.fixture(scope="module")
def uninterrupted(sealed_bundle: Path, table: Path) -> tuple[dict[str, Any], Path, str]:
    """What a job printed on stdout, its output, what it printed on stderr."""
    output = table.parent / f"{table.name}-out"
    answer = ran(command(sealed_bundle, table, output, *OPTIONS))
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout), output, answer.stderr


def test_every_row_is_answered_once_as_the_api_answers_it(
    uninterrupted: tuple[dict[str, Any], Path, str], sealed_bundle: Path
) -> None:
    result, output, _ = uninterrupted
    scored = pq.read_table(output)
    assert (result["rows"], result["scored"], result["bad"], scored.num_rows) == (3000, 2992, 8, 2992)
    assert scored.column("id").to_pylist() == [number for number in range(3000) if number % 400 != 7]
    rows = scored.slice(0, 1000).to_pylist()
    classifier = Classifier.open(open_bundle(str(sealed_bundle)))
    asked = [row["text"] for row in rows]
    api = [found for start in range(0, 1000, 7) for found in classifier.predict(asked[start : start + 7])]
    assert [row["label"] for row in rows] == [found.label for found in api]
    assert [row["probabilities"] for row in rows] == [found.probabilities.tolist() for found in api]


def test_bad_rows_are_told_with_file_line_and_id(uninterrupted: tuple[dict[str, Any], Path, str], table: Path) -> None:
    result, output, _ = uninterrupted
    told = [json.loads(line) for path in sorted((output / "_errors").iterdir()) for line in path.read_text().splitlines()]
    assert len(told) == 8
    assert told[3] == {
        "file": f"file://{table}/1.jsonl",
        "row": 208,
        "line": 208,
        "id": "1207",
        "reason": "null in place of a text",
    }
    assert result["errors"] == f"file://{output}/_errors"


def test_progress_is_on_stderr_and_ray_keeps_quiet(uninterrupted: tuple[dict[str, Any], Path, str]) -> None:
    _, _, stderr = uninterrupted
    assert "3,000 of 3,000 rows, 8 bad" in stderr.splitlines()[-1]
    expected = r"(\d+ of 50 shards are done already|[\d,]+ of 3,000 rows .*|[\d,]+ of 3,000 rows, .* USD so far, [\d.]+ in all)"
    assert [line for line in stderr.splitlines() if not re.fullmatch(expected, line)] == []


def test_a_finished_job_has_nothing_left_to_do(
    uninterrupted: tuple[dict[str, Any], Path, str], sealed_bundle: Path, table: Path
) -> None:
    result, output, _ = uninterrupted
    before = outcome(output)
    again = run(command(sealed_bundle, table, output, *OPTIONS))
    assert again is not None
    assert (again["labels"], again["shards_of_earlier_runs"]) == (result["labels"], 50)
    assert outcome(output) == before
    assert json.loads((output / "_SUCCESS").read_text())["scored"] == 2992


def test_a_killed_driver_and_a_killed_worker_leave_no_trace(
    uninterrupted: tuple[dict[str, Any], Path, str], sealed_bundle: Path, table: Path, tmp_path: Path
) -> None:
    arguments = command(sealed_bundle, table, tmp_path / "out", *OPTIONS)
    with running(arguments) as process:
        wait_for(5, tmp_path / "out", process)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    with running(arguments) as process:
        wait_for(len(list((tmp_path / "out").glob("part-*"))) + 3, tmp_path / "out", process)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        assert process.wait(timeout=200) == 0
    assert outcome(tmp_path / "out") == outcome(uninterrupted[1])


def test_too_many_bad_rows_stop_the_job(sealed_bundle: Path, tmp_path: Path) -> None:
    """Its first shard was done by a run with another threshold; the job does not start on the second."""
    write_csv(tmp_path / "in.csv", ["text", *["a", " "] * 50])
    config = ScoreConfig(bundle=str(sealed_bundle), input=str(tmp_path / "in.csv"), output=str(tmp_path / "out"), shard_rows=60)
    source = scan(find_files(config.input), Wanted("text", None, config.max_chars))
    plan = settle(config.output, make_plan(config, open_bundle(config.bundle), source))
    first, second = make_shards(source, 60)
    classifier = Classifier.open(open_bundle(config.bundle))
    commit(config.output, plan, 0, answer(classifier, read(source, first.spans, plan.wanted)))
    message = r"30 of 100 rows are bad, max_bad_share is 0\.1; file://.*/_errors says which"
    with pytest.raises(RunError, match=message):
        score(config)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    commit(config.output, plan, 1, answer(classifier, read(source, second.spans, plan.wanted)))
    with pytest.raises(RunError, match="50 of 100 rows are bad"):
        score(config)
    assert score(dataclasses.replace(config, max_bad_share=0.5))["bad"] == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["text=body"], "no column 'body'; found 'text'"),
        (["bundle=nowhere"], "nowhere: manifest.json is missing"),
        (["input=nowhere.csv"], "input=nowhere.csv: no file is there"),
        (["input=empty.csv"], "empty.csv: the file is empty"),
        (["output=full"], "output=file://"),
        (["topk=3"], "did you mean top_k?"),
        (["top_k=-1"], "top_k=-1: expected int >= 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    sealed_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "in.csv", ["text", "a"])
    (tmp_path / "empty.csv").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = {"bundle": str(sealed_bundle), "input": "in.csv", "output": "out"}
    arguments |= dict([change[0].split("=", 1)])
    assert call(run, [f"{key}={value}" for key, value in arguments.items()]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_help_tells_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) is None
    printed = capsys.readouterr().out
    assert printed.startswith("usage: score bundle=URL")
    assert "max_bad_share=0.1" in printed
