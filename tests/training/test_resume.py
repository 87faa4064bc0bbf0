"""A run that is killed and started again ends with the weights of one that was not."""

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.fork_server import ForkServer
from tests.training.test_trainer import run, stop_at

from pigeonhole.errors import ConfigError, RunError, StoppedError
from pigeonhole.training import trainer
from pigeonhole.training.checkpoint import Epoch

PROGRAM = Path(__file__).parent / "programs/resumable.py"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[Epoch]]:
    """Weights of the best epoch of a run that nobody disturbed, and its history."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    _, history = run(folder)
    return load_file(folder / trainer.BEST), history


@pytest.fixture(scope="module")
def uninterrupted(undisturbed: tuple[dict[str, torch.Tensor], list[Epoch]]) -> dict[str, torch.Tensor]:
    return undisturbed[0]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def seconds(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long a run takes that nobody disturbs, without the start of the server, which the first one waits for."""
    for name in ("first", "timed"):
        folder = tmp_path_factory.mktemp(name)
        began = time.monotonic()
        assert fork_server.wait(fork_server.start(PROGRAM, folder / "log", str(folder))) == 0
    return time.monotonic() - began


def kill_within(fork_server: ForkServer, folder: Path, number: int, delay: float) -> None:
    """Start a run in the folder and kill it after so many seconds, or sooner where it was done by then."""
    process = fork_server.start(PROGRAM, folder / "log", str(folder))
    time.sleep(delay)
    os.kill(process, number)
    ended = fork_server.wait(process)
    if ended == 0:
        for left in folder.iterdir():
            left.unlink()
        kill_within(fork_server, folder, number, delay / 2)
    else:
        told_to_stop = number == signal.SIGTERM and ended == 1
        assert ended == -number or told_to_stop, (folder / "log").read_text()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("moment", range(10))
def test_a_run_killed_at_any_moment_goes_on_to_the_weights_of_one_that_was_not(
    fork_server: ForkServer,
    uninterrupted: dict[str, torch.Tensor],
    seconds: float,
    tmp_path: Path,
    name: str,
    moment: int,
) -> None:
    number = signal.Signals[name]
    delay = random.uniform(moment, moment + 1) / 10 * seconds
    kill_within(fork_server, tmp_path, number, delay)
    process = fork_server.start(PROGRAM, tmp_path / "log", str(tmp_path))
    assert fork_server.wait(process) == 0, f"after {name} at {delay} s:\n{(tmp_path / 'log').read_text()}"
    assert_same(load_file(tmp_path / trainer.BEST), uninterrupted)


@pytest.mark.parametrize("save", [1, 6, 7, 8, 9, 20])  # 6 steps an epoch; at its end the best weights and the progress
def test_a_run_killed_while_it_saves_goes_on_to_the_same_weights(
    fork_server: ForkServer, uninterrupted: dict[str, torch.Tensor], tmp_path: Path, save: int
) -> None:
    process = fork_server.start(PROGRAM, tmp_path / "log", str(tmp_path), KILL_IN_SAVE=str(save))
    assert fork_server.wait(process) == -signal.SIGKILL
    assert fork_server.wait(fork_server.start(PROGRAM, tmp_path / "log", str(tmp_path))) == 0, (tmp_path / "log").read_text()
    assert ("going on from epoch" in (tmp_path / "log").read_text()) == (save > 1)
    assert_same(load_file(tmp_path / trainer.BEST), uninterrupted)


@pytest.mark.parametrize("moment", range(1, 22))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_told_to_stop_in_any_step_ends_with_it_and_goes_on_to_the_same_weights(
    tmp_path: Path,
    undisturbed: tuple[dict[str, torch.Tensor], list[Epoch]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    moment: int,
) -> None:
    with monkeypatch.context() as context:
        context.setattr(trainer, "SAVE_EVERY_S", 0.0)
        with pytest.raises(StoppedError if number == signal.SIGTERM else KeyboardInterrupt, match="stopped at epoch"):
            run(tmp_path, at=stop_at(moment, number))
    _, history = run(tmp_path)
    ends = moment // 7  # six steps an epoch and its end
    assert f"going on from epoch {1 + ends}, step {moment - ends}" in capsys.readouterr().err
    weights, expected = undisturbed
    assert [replace(epoch, seconds=0.0) for epoch in history] == [replace(epoch, seconds=0.0) for epoch in expected]
    assert_same(load_file(tmp_path / trainer.BEST), weights)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes, not Windows")
def test_a_run_whose_disk_is_full_says_so_and_goes_on_to_the_same_weights(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    """The weights of an epoch fit, the progress, three times as large, does not."""
    import resource

    whole = sum(tensor.nbytes for tensor in uninterrupted.values())
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * whole, no_limit[1]))
    try:
        with pytest.raises(RunError, match=r"progress\.safetensors: cannot be written: .*; the same command goes on once it can"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
    assert [path.name for path in tmp_path.iterdir()] == [trainer.BEST]
    run(tmp_path)
    assert_same(load_file(tmp_path / trainer.BEST), uninterrupted)


def test_the_progress_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(
        ConfigError, match="holds an unfinished run with another configuration, data, encoder, teacher or number of threads"
    ):
        run(tmp_path, fingerprint="another run")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"half"])
def test_progress_that_is_damaged_is_told_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / trainer.PROGRESS).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/{trainer.PROGRESS}: is damaged \(.*\); resume=never begins anew$"):
        run(tmp_path)


def test_a_finished_training_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, history = run(tmp_path)
    _, again = run(tmp_path)
    assert again == history
    assert "going on from epoch 4" in capsys.readouterr().err
