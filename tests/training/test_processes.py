"""Two processes, as torchrun starts them, train the same model as one."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import train_arguments
from tests.training.fork_server import ForkServer
from tests.training.test_trainer import RECIPE

from pigeonhole.port import free_port
from pigeonhole.training import trainer
from pigeonhole.training.batches import shuffled_batches

PROGRAMS = Path(__file__).parent / "programs"


def together(server: ForkServer, folder: Path, program: Path, *arguments: str, stop_at: str = "") -> list[int]:
    """Exit codes of both; `stop_at`: the step at which the second one alone receives SIGTERM."""
    folder.mkdir(exist_ok=True)
    port = str(free_port())
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        server.start(
            program,
            folder / f"log-{rank}",
            *arguments,
            RANK=rank,
            LOCAL_RANK=rank,
            STOP_AT=stop_at if rank == "1" else "",
            **shared,
        )
        for rank in ("0", "1")
    ]
    return [server.wait(process) for process in processes]


def saw(folder: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"seen-{number}.json").read_text())
    return found


@pytest.fixture(scope="module")
def two(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert together(fork_server, folder, PROGRAMS / "together.py", str(folder)) == [0, 0], (folder / "log-0").read_text()
    return folder


def test_both_processes_know_that_they_are_two_and_end_with_equal_weights(two: Path) -> None:
    assert [saw(two, number)["count"] for number in (0, 1)] == [2, 2]
    saved = load_file(two / trainer.PROGRESS)
    other = load_file(two / "last-1.safetensors")
    for name, value in other.items():
        assert torch.equal(saved[f"model.{name}"], value), name


def test_two_processes_have_the_loss_curve_of_one(two: Path, fork_server: ForkServer, tmp_path: Path) -> None:
    assert fork_server.wait(fork_server.start(PROGRAMS / "together.py", tmp_path / "log", str(tmp_path))) == 0
    one = saw(tmp_path, 0)
    assert one["count"] == 1
    np.testing.assert_allclose(saw(two, 0)["losses"], one["losses"], atol=1e-5, rtol=0)


def test_each_text_of_an_epoch_goes_to_exactly_one_process(two: Path) -> None:
    shares = [saw(two, number)["seen"] for number in (0, 1)]
    steps = [places for epoch in (1, 2, 3) for places in shuffled_batches(lengths(), RECIPE.batch_size, RECIPE.seed, epoch)]
    assert len(shares[0]) == len(shares[1]) == len(steps) == 18
    for places, first, second in zip(steps, *shares, strict=True):
        assert sorted([*first, *second]) == sorted(places)
        assert not set(first) & set(second)


def lengths() -> np.ndarray:
    from tests.training.test_trainer import rows

    return rows(45).lengths()


def test_a_signal_to_one_process_stops_both_and_both_go_on_to_the_same_weights(
    two: Path, fork_server: ForkServer, tmp_path: Path
) -> None:
    assert together(fork_server, tmp_path, PROGRAMS / "together.py", str(tmp_path), stop_at="8") == [1, 1]
    assert "StoppedError: stopped at epoch 2" in (tmp_path / "log-0").read_text()
    assert together(fork_server, tmp_path, PROGRAMS / "together.py", str(tmp_path)) == [0, 0]
    expected = load_file(two / trainer.PROGRESS)
    for name, value in load_file(tmp_path / trainer.PROGRESS).items():
        assert torch.equal(value, expected[name]), name


def test_the_first_process_alone_prints_and_publishes(fork_server: ForkServer, tiny_data: Path, tmp_path: Path) -> None:
    arguments = [*train_arguments(tmp_path, tiny_data), "trainer.epochs=1", "tracking=none"]
    program = tmp_path / "train.py"
    program.write_text("from pigeonhole.training.train import main\nmain()\n")
    assert together(fork_server, tmp_path, program, *arguments) == [0, 0], (tmp_path / "log-0").read_text()
    result = json.loads((tmp_path / "log-0").read_text().splitlines()[-1])
    assert result["test"]["n"] == 30
    assert "one JSON" not in (tmp_path / "log-1").read_text()
    assert not [line for line in (tmp_path / "log-1").read_text().splitlines() if line.startswith(("{", "epoch", "data:"))]
    assert len(list((tmp_path / "registry/models/tiny/versions").iterdir())) == 1


def test_other_commands_run_in_the_first_process_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pigeonhole.command import command

    ran: list[list[str]] = []
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="0"):
        command(ran.append)()
    assert not ran
    assert os.environ["RANK"] == "1"
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr() == ("", "")
