"""Trains the tiny model into a folder and saves after every step. KILL_IN_SAVE=N: is killed while it saves for the Nth time."""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.training.test_trainer import run

from pigeonhole.training import trainer

trainer.SAVE_EVERY_S = 0.0
fsync, saves = os.fsync, itertools.count(1)


def kill_in_save(descriptor: Any) -> None:
    if str(next(saves)) == os.environ.get("KILL_IN_SAVE"):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)


setattr(os, "fsync", kill_in_save)  # noqa: B010  it takes more types than are needed here
run(Path(sys.argv[1]))
