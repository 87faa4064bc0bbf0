"""Where a step's time goes: `uv run python -m benchmarks.training.profile` prints one JSON object, and a table on stderr.

The default data set and model, our own trainer's steps under torch.profiler; `trace=FILE` keeps a trace for chrome://tracing or
Perfetto.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigeonhole.command import command, say, with_help
from pigeonhole.options import read_options, setting


@dataclass(frozen=True)
class Options:
    rows: int = setting(640, "training rows: a step has trainer.batch_size of them", ge=32)
    threads: int = setting(1, "CPU threads; one shows where the work is", ge=1)
    top: int = setting(20, "operators that are shown", ge=1)
    model: str = setting("minilm", "a file of configs/model/")
    trace: str | None = setting(None, "file for the trace")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    import numpy as np
    from torch.profiler import ProfilerActivity, profile

    from pigeonhole.classifier import Encoder
    from pigeonhole.configuration import compose
    from pigeonhole.dataset.load import load_dataset
    from pigeonhole.training import corridor, trainer
    from pigeonhole.training.batches import TokenizedRows
    from pigeonhole.training.config import TrainConfig
    from pigeonhole.training.model import load_model, load_tokenizer
    from pigeonhole.training.pretrained import locate

    config = compose(TrainConfig, "train", [f"model={options.model}", "trainer.epochs=1", f"trainer.threads={options.threads}"])
    trainer.set_determinism(config.seed, options.threads)
    dataset = load_dataset(config.data)
    chosen = dataset.split.train[: options.rows]
    pretrained = locate(config.model.pretrained, None)
    tokenizer = load_tokenizer(pretrained, [row.text for row in chosen])
    encodings = Encoder(tokenizer.backend_tokenizer, config.model.max_length).encode([row.text for row in chosen])
    rows = TokenizedRows(
        [found.input_ids for found in encodings], np.array([dataset.labels.index(row.label) for row in chosen], np.int64)
    )
    averaging, longest = config.model.averaging_layer, config.model.max_length
    model = load_model(pretrained, dataset.labels, tokenizer, averaging_layer=averaging, max_length=longest)
    few = TokenizedRows(rows.input_ids[:8], rows.label_ids[:8])
    with tempfile.TemporaryDirectory() as folder, profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.train(model, rows, few, corridor.make_recipe(config), Path(folder), "profile", lambda history: None)
    if options.trace:
        profiler.export_chrome_trace(options.trace)
    averages = profiler.key_averages()
    say(averages.table(sort_by="self_cpu_time_total", row_limit=options.top, max_name_column_width=48))
    total = sum(event.self_cpu_time_total for event in averages)
    ranked = sorted(averages, key=lambda event: -event.self_cpu_time_total)[: options.top]
    return {
        "rows": len(rows),
        "total_ms": round(total / 1e3, 1),
        "operators": {
            event.key: {"share": round(event.self_cpu_time_total / total, 4), "calls": event.count} for event in ranked
        },
    }


main = command(run)

if __name__ == "__main__":
    main()
