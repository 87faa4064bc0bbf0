"""A run that is killed and started again ends with the weights of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_trainer import RECIPE, run

from pigeonhole.errors import ConfigError, StoppedError
from pigeonhole.training import trainer

# Trains the tiny model and saves its progress after every step, slowly enough to be killed anywhere.
PROGRAM = """
import sys, time
from pathlib import Path
from pigeonhole.training import checkpoint, trainer
from tests.training.test_trainer import run

trainer.SAVE_EVERY_S = 0.0
print("ready", flush=True)
run(Path(sys.argv[1]))
print("finished", flush=True)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of the best epoch of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder)
    return load_file(folder / trainer.BEST)


def start(folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_run_killed_without_warning_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    program = start(tmp_path)
    while not (tmp_path / trainer.PROGRESS).exists():
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.3))
    program.kill()
    program.communicate(timeout=60)
    program = start(tmp_path)
    assert program.communicate(timeout=120)[0] == "finished\n"
    assert_same(load_file(tmp_path / trainer.BEST), uninterrupted)


@pytest.mark.parametrize("step", range(1, 19))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_after_any_step_goes_on_to_the_same_weights(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, number: int, step: int
) -> None:
    obeyed = trainer.StopSignals.obey
    seen = 0

    def stop(signals: trainer.StopSignals, where: str) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            signal.raise_signal(number)
        obeyed(signals, where)

    with monkeypatch.context() as context:
        context.setattr(trainer, "SAVE_EVERY_S", 0.0)
        context.setattr(trainer.StopSignals, "obey", stop)
        with pytest.raises(StoppedError if number == signal.SIGTERM else KeyboardInterrupt, match=r"stopped at epoch|^$"):
            run(tmp_path)
    _, history = run(tmp_path)
    assert [epoch.number for epoch in history] == list(range(1, RECIPE.epochs + 1))
    assert_same(load_file(tmp_path / trainer.BEST), uninterrupted)


def test_the_progress_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ConfigError, match="holds an unfinished run with another configuration, data or number of threads"):
        run(tmp_path, fingerprint="another run")


def test_a_finished_training_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, history = run(tmp_path)
    _, again = run(tmp_path)
    assert again == history
    assert "going on from epoch 4" in capsys.readouterr().err
