"""How many of the labels that `label-errors` doubts first are wrong: known flips are planted, then counted among the first.

`uv run python -m benchmarks.training.label_errors data=FILE text=text label=category` prints one JSON object: `precision` among
the first 50, 100, 250 and 500 doubted rows, as far as so many were planted, and among as many as were planted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pigeonhole.command import command, with_help
from pigeonhole.configuration import compose
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.errors import ConfigError
from pigeonhole.options import read_options, setting
from pigeonhole.training.label_errors import LabelErrorsConfig, find_suspects, out_of_fold

TOPS = (50, 100, 250, 500)


@dataclass(frozen=True)
class Options:
    data: str | None = setting(None, "labelled rows")
    text: str | None = setting(None, "column with the text")
    label: str | None = setting(None, "column with the label")
    share: float = setting(0.05, "share of the rows that get another label, each as likely as the next", gt=0, lt=1)
    seed: int = setting(0, "of the flips", ge=0)


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.data is None:
        raise ConfigError("data=FILE is needed; see --help")
    rows = list(read_rows(DataConfig(path=options.data, text=options.text, label=options.label)))
    return measure(rows, options.share, options.seed, compose(LabelErrorsConfig, "label_errors", []))


def measure(rows: Sequence[Row], share: float, seed: int, config: LabelErrorsConfig) -> dict[str, Any]:
    """By what `label-errors` does, on the rows themselves: the same text may stand there twice. Raises ConfigError."""
    labels = sorted({row.label for row in rows})
    planted = round(share * len(rows))
    if len(labels) < 2 or len(rows) < config.folds or planted == 0:
        raise ConfigError(
            f"data= has {len(rows)} rows and {len(labels)} labels, share={share} of them are {planted} rows to flip;"
            f" {config.folds} rows, two labels and one flip are needed"
        )
    from pigeonhole.training.frozen import embed_texts

    right_ids = np.array([labels.index(row.label) for row in rows], np.int64)
    told_ids = right_ids.copy()
    random = np.random.default_rng(seed)
    for place in random.choice(len(rows), planted, replace=False):
        told_ids[place] = (right_ids[place] + random.integers(1, len(labels))) % len(labels)
    embeddings = embed_texts(config.model, labels, [row.text for row in rows], config.seed, config.threads)
    found = find_suspects(out_of_fold(embeddings, told_ids, len(labels), config.folds, config.seed), told_ids)
    hits = told_ids[found.places] != right_ids[found.places]
    suggested = found.suggested_ids == right_ids[found.places]
    first = slice(max(TOPS))
    return {
        "rows": len(rows),
        "planted": planted,
        "found": int(hits.sum()),
        "precision": {str(top): float(hits[:top].mean()) if hits.size else 0.0 for top in tops(planted)},
        "right_suggestion_among_found": float((suggested & hits)[first].sum() / max(1, hits[first].sum())),
        "estimated_errors": found.estimated,
        "out_of_fold_accuracy": found.accuracy,
    }


def tops(planted: int) -> list[int]:
    """Among more rows than were planted no ranking could be right."""
    return sorted({*(top for top in TOPS if top <= planted), planted})


if __name__ == "__main__":
    command(run)()
