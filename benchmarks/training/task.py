"""The task that every contender gets, in a JSON file, and what each of them has to tell.

Seconds are of the training alone (`train_cpu_s`, `train_wall_s`; all threads; what it takes to measure on test rows is taken out
of the Trainer's and left in ours) and of all from the texts to the trained model (`cpu_s`, `wall_s`: tokens, weights, head).
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec


@dataclass(frozen=True)
class Task:
    pretrained: str
    texts: list[str]
    label_ids: list[int]
    test_texts: list[str]
    test_label_ids: list[int]
    labels: list[str]
    epochs: int
    seed: int
    threads: int
    max_length: int


@dataclass(frozen=True)
class Told:
    texts: int
    train_cpu_s: float
    train_wall_s: float
    cpu_s: float
    wall_s: float
    accuracies: list[tuple[float, float]] = field(default_factory=list)  # (seconds of training so far, test accuracy)
    flops_a_text: float = 0.0


def read_task(path: str) -> Task:
    return msgspec.json.decode(Path(path).read_bytes(), type=Task)


class Clock:
    """Seconds of CPU and of the wall since it was made; `paused` takes out what a measurement takes."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.monotonic()
        self._paused_cpu = self._paused_wall = 0.0

    def __enter__(self) -> "Clock":
        self._pause_cpu, self._pause_wall = time.process_time(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._paused_cpu += time.process_time() - self._pause_cpu
        self._paused_wall += time.monotonic() - self._pause_wall

    def cpu_s(self) -> float:
        return time.process_time() - self._cpu - self._paused_cpu

    def wall_s(self) -> float:
        return time.monotonic() - self._wall - self._paused_wall
