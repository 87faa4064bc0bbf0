"""How much of a GPU training uses: `uv run python -m benchmarks.training.gpu` prints one JSON object.

BERT-base from random weights, every text of exactly tokens= real tokens, bf16, our own trainer's step with its prefetching and
optimizer. The useful work is the products' own, counted by torch; `mfu` is its share of peak_tflops= (dense bf16: H100 SXM 989,
A100 312, L4 121; a T4 has no bf16).
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pigeonhole.command import command, with_help
from pigeonhole.errors import ConfigError
from pigeonhole.options import read_options, setting


@dataclass(frozen=True)
class Options:
    peak_tflops: float = setting(989.0, "the GPU's dense bf16 peak", gt=0)
    tokens: int = setting(128, "of each text", ge=4, le=512)
    batch_size: int = setting(256, "texts of a step", ge=1)
    steps: int = setting(100, "that are measured, after as many again to warm up", ge=1)
    compile: bool = setting(False, "torch.compile the forward pass")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertForSequenceClassification

    from pigeonhole.training import trainer
    from pigeonhole.training.batches import TokenizedRows
    from pigeonhole.training.model import take_apart
    from pigeonhole.training.padding_free import PaddingFree

    if not torch.cuda.is_available():
        raise ConfigError("no GPU is here: torch.cuda.is_available() is false; run it where there is one")
    trainer.set_determinism(0, 0)
    model = take_apart(BertForSequenceClassification(BertConfig(id2label=dict(enumerate(map(str, range(77)))))))
    random = np.random.default_rng(0)
    texts = options.batch_size * options.steps
    rows = TokenizedRows(random.integers(5, 30_000, (texts, options.tokens)).tolist(), random.integers(0, 77, texts))
    few = TokenizedRows(rows.input_ids[: options.batch_size], rows.label_ids[: options.batch_size])
    recipe = trainer.Recipe(
        epochs=2,
        batch_size=options.batch_size,
        learning_rate=1e-5,
        head_learning_rate=1e-5,
        weight_decay=0.01,
        warmup=0.1,
        max_grad_norm=1.0,
        patience=2,
        freeze_word_embeddings=True,
        seed=0,
        compile=options.compile,
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        history = trainer.train(model, rows, few, recipe, Path(folder), "gpu", lambda history: ends.append(time.monotonic()))
    with FlopCounterMode(display=False) as counted:
        device = next(model.parameters()).device
        PaddingFree(model.train())(few.batch(np.arange(len(few))).packed.to(device))[0].sum().backward()
    seconds = history[1].seconds - history[0].seconds
    flops = counted.get_total_flops() * options.steps
    return {
        "options": msgspec.to_builtins(options),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "texts_s": round(texts / seconds, 1),
        "tflops": round(flops / seconds / 1e12, 1),
        "mfu": round(flops / seconds / 1e12 / options.peak_tflops, 3),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


main = command(run)

if __name__ == "__main__":
    main()
