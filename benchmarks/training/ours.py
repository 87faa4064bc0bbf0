"""Our own training room on the same task: `python -m benchmarks.training.ours TASK KEY=VALUE …` prints one JSON object.

The keys are those of `trainer.…`; the rest is as experiment=banking77 has it.
"""

import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
from benchmarks.training.task import Clock, Told, read_task
from torch.utils.flop_counter import FlopCounterMode

from pigeonhole.classifier import Encoder
from pigeonhole.configuration import compose
from pigeonhole.training import corridor, trainer
from pigeonhole.training.batches import TokenizedRows, shuffled_batches
from pigeonhole.training.checkpoint import Epoch
from pigeonhole.training.config import TrainConfig
from pigeonhole.training.head import fit_head
from pigeonhole.training.loss import LabelLoss
from pigeonhole.training.model import TextClassifier, load_model, load_tokenizer
from pigeonhole.training.padding_free import PaddingFree
from pigeonhole.training.pretrained import locate


def main() -> None:
    task = read_task(sys.argv[1])
    keys = [f"trainer.{argument}" for argument in sys.argv[2:]]
    config = compose(TrainConfig, "train", ["experiment=banking77", f"seed={task.seed}", f"trainer.epochs={task.epochs}", *keys])
    process = Clock()
    trainer.set_determinism(task.seed, task.threads)
    pretrained = locate(config.model.pretrained, None)
    tokenizer = load_tokenizer(pretrained, [])
    encoder = Encoder(tokenizer.backend_tokenizer, task.max_length)
    rows = TokenizedRows([found.input_ids for found in encoder.encode(task.texts)], np.array(task.label_ids))
    test = TokenizedRows([found.input_ids for found in encoder.encode(task.test_texts)], np.array(task.test_label_ids))
    if not task.test_texts:  # something has to choose the best epoch
        test = TokenizedRows(rows.input_ids[:8], rows.label_ids[:8])
    averaging = config.model.averaging_layer
    model = load_model(pretrained, task.labels, tokenizer, averaging_layer=averaging, max_length=task.max_length)
    recipe = corridor.make_recipe(config)
    rows = trainer.keep_hidden_states(model, rows, recipe.frozen_layers, recipe.precision)
    if config.trainer.fit_head_first:
        fit_head(model.head, trainer.embed(model, rows, recipe.precision), rows.label_ids)
    accuracies: list[tuple[float, float]] = []
    clock = Clock()

    def measure(history: list[Epoch]) -> None:
        accuracies.append((history[-1].seconds, history[-1].validation_accuracy))

    with tempfile.TemporaryDirectory() as folder:
        criterion = LabelLoss(config.trainer.label_smoothing)
        trainer.train(model, rows, test, recipe, Path(folder), "benchmark", measure, criterion)
    taken = clock.cpu_s(), clock.wall_s(), process.cpu_s(), process.wall_s()
    told = Told(len(rows) * task.epochs, *taken, accuracies if task.test_texts else [], flops_a_text(model, rows))
    print(msgspec.json.encode(told).decode())


def flops_a_text(model: TextClassifier, rows: TokenizedRows) -> float:
    """Of the matrix products, there and back, that training does on real tokens."""
    some = shuffled_batches(rows.lengths(), 32, seed=0, epoch=1)[:8]
    forward = PaddingFree(model)
    with FlopCounterMode(display=False) as counted:
        for places in some:
            forward(rows.batch(places).packed)[0].sum().backward()
    return float(counted.get_total_flops() / sum(map(len, some)))


if __name__ == "__main__":
    main()
