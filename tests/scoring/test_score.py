import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.scoring.chaos import SCORE, files_of, job, refuse_difference
from benchmarks.scoring.processes import family_of, listening, scorers_of
from benchmarks.scoring.same_answers import answers_of, ask
from tests.scoring.conftest import write_csv, write_jsonl

from pigeonhole import storage
from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import call
from pigeonhole.errors import RunError
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.plan import make_plan, make_shards, settle
from pigeonhole.scoring.score import read_receipts, run, score
from pigeonhole.scoring.shard import answer, commit
from pigeonhole.scoring.source import Wanted, find_files, read, scan


def command(bundle: Path, source: Path, output: Path, *more: str) -> list[str]:
    return [f"bundle={bundle}", f"input={source}", f"output={output}", "text=text", *more]


def ran(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SCORE, *arguments], capture_output=True, text=True, check=False)


def wait_for(number: int, output: Path, process: subprocess.Popen[bytes]) -> None:
    """Until so many parts are there."""
    until = time.monotonic() + 120
    while len(list(output.glob("part-*"))) < number:
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)


def a_scorer_of(process: subprocess.Popen[bytes]) -> int:
    """Its process id; a worker between two names is not seen as one."""
    while not (found := scorers_of(process.pid)):
        assert process.poll() is None, "the job ended before a scorer could be killed"
        time.sleep(0.005)
    return found[0]


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
            text = " ".join(generator.choices(words, k=1200 if number % 100 == 50 else generator.randint(1, 30)))
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


def test_every_row_is_answered_once_and_as_the_http_service_answers_it(
    uninterrupted: tuple[dict[str, Any], Path, str], sealed_bundle: Path, tmp_path: Path
) -> None:
    """The short version of benchmarks/scoring/same_answers.py: bit for bit, over real HTTP, short and long texts."""
    result, output, _ = uninterrupted
    scored = pq.read_table(output)
    assert (result["rows"], result["scored"], result["bad"], scored.num_rows) == (3000, 2992, 8, 2992)
    assert scored.column("id").to_pylist() == [number for number in range(3000) if number % 400 != 7]
    texts = scored.column("text").to_pylist()[:1000]
    assert max(map(len, texts)) > 7000
    assert ask(str(sealed_bundle), texts, tmp_path) == answers_of(output)[:1000]


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
    before = files_of(output)
    again = run(command(sealed_bundle, table, output, *OPTIONS))
    assert again is not None
    assert (again["labels"], again["shards_of_earlier_runs"]) == (result["labels"], 50)
    assert files_of(output) == before
    assert json.loads((output / "_SUCCESS").read_text())["scored"] == 2992


def test_a_damaged_receipt_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "_shards").mkdir()
    (tmp_path / "_shards" / "000000.json").write_text('{"shard":')
    with pytest.raises(RunError, match=r"_shards/000000\.json: this is no receipt .* delete it"):
        read_receipts(str(tmp_path))


def test_a_killed_driver_and_a_killed_worker_leave_no_trace_and_nothing_listened_beyond_this_machine(
    uninterrupted: tuple[dict[str, Any], Path, str], sealed_bundle: Path, table: Path, tmp_path: Path
) -> None:
    arguments = command(sealed_bundle, table, tmp_path / "out", *OPTIONS)
    with job(arguments) as process:
        wait_for(5, tmp_path / "out", process)
        addresses = listening(family_of(process.pid))
        os.kill(process.pid, signal.SIGKILL)
    refuse_open_doors(addresses)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    with job(arguments) as process:
        wait_for(len(list((tmp_path / "out").glob("part-*"))) + 1, tmp_path / "out", process)
        os.kill(a_scorer_of(process), signal.SIGKILL)
        assert process.wait(timeout=200) == 0
    refuse_difference("out", files_of(tmp_path / "out"), files_of(uninterrupted[1]))


def refuse_open_doors(addresses: dict[str, str]) -> None:
    """Ray listens, and at this machine's own addresses only."""
    assert {"gcs_server", "raylet"} <= set(addresses.values())
    loopback = ("0100007F:", "00000000000000000000000001000000:", "0000000000000000FFFF00000100007F:")
    assert {address: name for address, name in addresses.items() if not address.startswith(loopback)} == {}


@pytest.mark.parametrize("found", [{"a": b"1"}, {"a": b"1", "b": b"3"}, {"a": b"1", "b": b"2", "c": b""}])
def test_a_file_that_differs_is_seen(found: dict[str, bytes]) -> None:
    with pytest.raises(RunError, match="1 files are not those of the undisturbed run"):
        refuse_difference("out", found, {"a": b"1", "b": b"2"})


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


def test_a_job_over_a_bucket_reads_by_ranges_and_commits_there(sealed_bundle: Path, bucket: str, texts: list[str]) -> None:
    """All but Ray: its workers would have to reach the bucket of this process."""
    for number in range(2):
        lines = ["text", *(f'"{text}"' for text in texts[number::2]), " "]
        storage.write(f"{bucket}/in/{number}.csv", "".join(f"{line}\n" for line in lines).encode())
    config = ScoreConfig(f"{bucket}/bundle", f"{bucket}/in/*.csv", f"{bucket}/out", shard_rows=100)
    for path in sealed_bundle.iterdir():
        storage.write(f"{config.bundle}/{path.name}", path.read_bytes())
    bundle = open_bundle(config.bundle)
    source = scan(find_files(config.input), Wanted("text", None, config.max_chars))
    plan = settle(config.output, make_plan(config, bundle, source))
    classifier = Classifier.open(bundle)
    for shard in make_shards(source, 100):
        commit(config.output, plan, shard.number, answer(classifier, read(source, shard.spans, plan.wanted)))
    result = score(config)
    assert (result["rows"], result["scored"], result["bad"], result["shards_of_earlier_runs"]) == (302, 300, 2, 4)
    parts = [name for name in storage.expand(config.output) if name.endswith(".parquet")]
    scored = pa.concat_tables([pq.read_table(io.BytesIO(storage.read(name))) for name in parts])
    assert scored.column("text").to_pylist() == [*texts[0::2], *texts[1::2]]
    assert scored.column("label").to_pylist() == [found.label for found in classifier.predict([*texts[0::2], *texts[1::2]])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["text=body"], "no column 'body'; found 'text'"),
        (["bundle=nowhere"], "nowhere: manifest.json is missing"),
        (["input=nowhere.csv"], "input=nowhere.csv: no file is there"),
        (["input=empty.csv"], "empty.csv: the file is empty"),
        (["input=header.csv"], "header.csv: there are no rows"),
        (["input=cut.csv"], "cut.csv: line 3: not CSV: unexpected end of data"),
        (["input=cut.parquet"], "cut.parquet: not a readable Parquet file"),
        (["input=shards/*.parquet"], "b.parquet: not a readable Parquet file"),
        (["bundle=torn"], "torn: tokenizer.json"),
        (["ray_address=auto"], "ray_address=auto: no Ray cluster answers there"),
        (["ray_address=127.0.0.1:1"], "ray_address=127.0.0.1:1: no Ray cluster answers there"),
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
    write_csv(tmp_path / "header.csv", ["text"])
    (tmp_path / "cut.csv").write_text('text\na\n"b')
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "shards/a.parquet")
    whole = (tmp_path / "shards/a.parquet").read_bytes()
    for name in ("cut.parquet", "shards/b.parquet"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    shutil.copytree(sealed_bundle, tmp_path / "torn")
    (tmp_path / "torn/tokenizer.json").write_bytes(b"{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments = {"bundle": str(sealed_bundle), "input": "in.csv", "output": "out"}
    arguments |= dict([change[0].split("=", 1)])
    assert call(run, [f"{key}={value}" for key, value in arguments.items()]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_tells_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) is None
    printed = capsys.readouterr().out
    assert printed.startswith("usage: score bundle=URL")
    assert "max_bad_share=0.1" in printed
