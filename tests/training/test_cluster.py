import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from pigeonhole.errors import RunError
from pigeonhole.port import free_port
from pigeonhole.training.cluster import Place, read_place, torchrun, train_together

CLUSTER = {"workerpool0": ["job-workerpool0-0:2222"], "workerpool1": ["job-workerpool1-0:2222", "job-workerpool1-1:2222"]}


def spec(pool: str, index: int, cluster: dict[str, list[str]] = CLUSTER) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": pool, "index": index, "trial": "1"}, "environment": "cloud"})


@pytest.mark.parametrize(("pool", "index", "rank"), [("workerpool0", 0, 0), ("workerpool1", 0, 1), ("workerpool1", 1, 2)])
def test_every_machine_knows_its_number_and_where_the_first_one_is(pool: str, index: int, rank: int) -> None:
    assert read_place(spec(pool, index)) == Place(rank, 3, "job-workerpool0-0", 2222)


@pytest.mark.parametrize("said", ["", "{}", spec("workerpool0", 0, {"workerpool0": ["one:2222"]})])
def test_a_job_of_one_machine_has_no_place_among_others(said: str) -> None:
    assert read_place(said) is None


@pytest.mark.parametrize(
    "said", ["{", "[]", spec("workerpool2", 0), spec("workerpool0", 0, {"workerpool0": ["no port"], "workerpool1": ["a:1"]})]
)
def test_what_is_no_description_of_a_cluster_is_refused_and_shown(said: str) -> None:
    with pytest.raises(RunError, match=r"CLUSTER_SPEC=.*not the description of a cluster"):
        read_place(said)


def a_program(folder: Path, text: str) -> Path:
    file = folder / "train"
    file.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    file.chmod(0o755)
    return file


def a_place(rank: int, machines: int, port: int) -> Place:
    return Place(rank, machines, "127.0.0.1", port)


@pytest.fixture
def port() -> int:
    return free_port()


def test_two_machines_meet_and_the_first_one_tells_the_result(tmp_path: Path, port: int) -> None:
    program = a_program(
        tmp_path,
        """
        import json, os, sys
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if os.environ["RANK"] == "0":
            print(json.dumps({"given": [os.environ[name] for name in names], "arguments": sys.argv[1:]}))
        """,
    )
    other = subprocess.Popen(torchrun(a_place(1, 2, port), ["a=1"], program))
    found: Any = train_together(a_place(0, 2, port), ["a=1"], program)
    assert found == {"given": ["0", "2", "127.0.0.1", str(port)], "arguments": ["a=1"]}
    assert other.wait(60) == 0


def test_a_machine_that_is_taken_away_tells_its_process_and_the_run_has_failed(tmp_path: Path, port: int) -> None:
    program = a_program(
        tmp_path,
        f"""
        import pathlib, signal, sys, time
        folder = pathlib.Path({str(tmp_path)!r})
        def save(*_):
            (folder / "saved").touch()
            sys.exit(3)
        signal.signal(signal.SIGTERM, save)
        (folder / "ready").touch()
        time.sleep(60)
        """,
    )
    place = a_place(0, 1, port)
    code = (
        f"from pathlib import *; from pigeonhole.training.cluster import *; train_together({place!r}, [], Path({str(program)!r}))"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < end:
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    _, said = worker.communicate(timeout=60)
    assert (tmp_path / "saved").exists()
    assert "torchrun ended with 1 on machine 0 of 1" in said
