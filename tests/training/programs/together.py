"""Trains the tiny model without dropout as one of several processes; writes down what this process saw and ended with.

STOP_AT=N: this process is told to stop in the middle of its Nth step.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from tests.training.test_trainer import RECIPE, fresh_model, rows
from torch import Tensor, nn

from pigeonhole.training import trainer
from pigeonhole.training.processes import Processes

folder, number = Path(sys.argv[1]), os.environ.get("RANK", "0")
seen: list[list[int]] = []
share = Processes.share


def remember(self: Processes, places: NDArray[np.int64]) -> NDArray[np.int64]:
    seen.append(share(self, places).tolist())
    return share(self, places)


def learn(logits: Tensor, label_ids: Tensor) -> Tensor:
    if str(len(seen)) == os.environ.get("STOP_AT"):
        signal.raise_signal(signal.SIGTERM)
    return nn.functional.cross_entropy(logits, label_ids)


Processes.share = remember  # type: ignore[assignment, method-assign]
model = fresh_model()
for module in model.modules():
    if isinstance(module, nn.Dropout):
        module.p = 0.0
if number != "0":  # the others begin with what the first one has, whatever they had
    nn.init.zeros_(model.head.weight)
history = trainer.train(model, rows(45), rows(24, seed=1), RECIPE, folder, "together", lambda history: None, learn)
found = {"count": Processes().count, "seen": seen, "losses": [epoch.loss for epoch in history]}
(folder / f"seen-{number}.json").write_text(json.dumps(found))
save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / f"last-{number}.safetensors")
