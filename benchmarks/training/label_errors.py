"""How many of the labels that `label-errors` doubts first are wrong: known flips are planted, then counted among the first.

`uv run python -m benchmarks.training.label_errors data=FILE text=text label=category` prints one JSON object.
"""

import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pigeonhole.command import command
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import ConfigError
from pigeonhole.options import key_lines, read_options, setting
from pigeonhole.training.label_errors import run as label_errors

TOPS = (50, 100, 250, 500)


@dataclass(frozen=True)
class Options:
    data: str | None = setting(None, "labelled rows")
    text: str | None = setting(None, "column with the text")
    label: str | None = setting(None, "column with the label")
    share: float = setting(0.05, "share of the rows that get another label, each as likely as the next", gt=0, lt=1)
    seed: int = setting(0, "of the flips", ge=0)


def run(arguments: list[str]) -> dict[str, Any] | None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__, "\n".join(key_lines(Options)), sep="\n")
        return None
    options = read_options(Options, arguments)
    if options.data is None:
        raise ConfigError("data=FILE is needed; see --help")
    rows = list(read_rows(DataConfig(path=options.data, text=options.text, label=options.label)))
    labels = sorted({row.label for row in rows})
    random = np.random.default_rng(options.seed)
    flipped = {
        int(place): labels[(labels.index(rows[place].label) + int(random.integers(1, len(labels)))) % len(labels)]
        for place in random.choice(len(rows), round(options.share * len(rows)), replace=False)
    }
    right = {(rows[place].text, wrong): rows[place].label for place, wrong in flipped.items()}
    with tempfile.TemporaryDirectory() as folder:
        path, review = Path(folder, "flipped.csv"), Path(folder, "review.csv")
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("text", "label"))
            writer.writerows((row.text, flipped.get(place, row.label)) for place, row in enumerate(rows))
        result = label_errors([f"data.path={path}", f"out={review}", f"top={max(TOPS)}"])
        with review.open(encoding="utf-8", newline="") as stream:
            doubted = [(line["text"], line["label"], line["suggestion"]) for line in csv.DictReader(stream)]
    hits = [(text, label) in right for text, label, _ in doubted]
    suggested = [right.get((text, label)) == suggestion for text, label, suggestion in doubted]
    return {
        "rows": len(rows),
        "planted": len(flipped),
        "precision": {top: sum(hits[:top]) / top for top in TOPS},
        "right_suggestion_among_found": sum(suggested) / max(1, sum(hits)),
        "estimated_errors": result["estimated_errors"],
        "out_of_fold_accuracy": result["out_of_fold_accuracy"],
    }


if __name__ == "__main__":
    command(run)()
