"""A version's held-out rows, as its reference.parquet keeps them: where it is right, how sure it is, what another one changes.

A row's answer is a set of labels: of one, or of a multi-label version any number; it is right where both sets are the same. Texts
are beside the bundle in the registry, where they were kept; everything but the sight of them works without.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ArrowException

from pigeonhole.bundle import REFERENCE, Manifest, Task, read_file
from pigeonhole.errors import BundleError, ConfigError
from pigeonhole.metrics import bootstrap_share_difference, wilson_interval

LENGTHS = ((1, 5), (6, 15), (16, 40), (41, 10**9))  # words, as evaluation/slices.py has them
BINS = 10
EXAMPLES, EXAMPLE_CHARS = 6, 120

Labels = frozenset[str]
Cell = Literal["both", "missed", "extra", "neither"]
"""Of one label: whether a row has it and was given it; `missed`: has it alone, `extra`: was given it alone."""


@dataclass(frozen=True)
class HeldOut:
    """One entry a row, in the order of the file."""

    true_labels: list[Labels]
    labels: list[Labels]
    scores: NDArray[np.float64]
    n_words: NDArray[np.int64]
    texts: list[str] | None
    task: Task = "single_label"

    @property
    def right(self) -> NDArray[np.bool_]:
        return np.array([true == said for true, said in zip(self.true_labels, self.labels, strict=True)], bool)

    def row(self, place: int) -> dict[str, Any]:
        return {
            "text": self.texts[place] if self.texts else None,
            "true_labels": sorted(self.true_labels[place]),
            "labels": sorted(self.labels[place]),
            "score": float(self.scores[place]),
            "n_words": int(self.n_words[place]),
        }


def read_held_out(url: str, manifest: Manifest, texts: list[str] | None) -> HeldOut | None:
    """None for a bundle without such rows. Raises BundleError."""
    if REFERENCE not in manifest.files:
        return None
    data = read_file(url, manifest, REFERENCE)
    said = ["true_labels", "labels"] if manifest.task == "multi_label" else ["true_label", "label"]
    columns = [*said, "score", "n_words"]
    try:
        known = pq.read_schema(io.BytesIO(data)).names
        table = pq.read_table(io.BytesIO(data), columns=columns) if set(columns) <= set(known) else None
    except ArrowException as error:
        raise BundleError(f"{url}: {REFERENCE} cannot be read: {error}") from error
    if table is None:
        return None
    kept = texts if texts is not None and len(texts) == table.num_rows else None
    true_labels, labels = (
        [frozenset((found,) if isinstance(found, str) else found) for found in table[column].to_pylist()] for column in said
    )
    return HeldOut(true_labels, labels, table["score"].to_numpy(), table["n_words"].to_numpy(), kept, manifest.task)


def summary(rows: HeldOut) -> dict[str, Any]:
    """What the page draws of one version: who is taken for whom, or of a multi-label one a table of four cells a label."""
    several = rows.task == "multi_label"
    return {
        "n": len(rows.labels),
        "wrong": int((~rows.right).sum()),
        "has_texts": rows.texts is not None,
        "confusion": [] if several else _confusion(rows),
        "by_label": _cells(rows) if several else [],
        "reliability": _reliability(rows),
        "slices": _slices(rows),
        "examples": _examples(rows),
    }


def _confusion(rows: HeldOut) -> list[dict[str, Any]]:
    pairs = Counter((*true, *said) for true, said in zip(rows.true_labels, rows.labels, strict=True))
    return [{"true_label": true, "label": said, "n": n} for (true, said), n in sorted(pairs.items())]


def _cells(rows: HeldOut) -> list[dict[str, Any]]:
    """How many rows stand in each cell of each label, the label with the most errors first."""
    found = []
    for label in sorted(frozenset().union(*rows.true_labels, *rows.labels)):
        counts = Counter(_cell(label, true, said) for true, said in zip(rows.true_labels, rows.labels, strict=True))
        found.append({"label": label, **{cell: counts[cell] for cell in get_args(Cell)}})
    return sorted(found, key=lambda each: -(each["missed"] + each["extra"]))


def _cell(label: str, true: Labels, said: Labels) -> Cell:
    if label in true:
        return "both" if label in said else "missed"
    return "extra" if label in said else "neither"


def _reliability(rows: HeldOut) -> list[dict[str, Any]]:
    """Bins of equal width that hold rows: how sure, how often right, with its 95 % interval."""
    right, places = rows.right, np.clip((rows.scores * BINS).astype(int), 0, BINS - 1)
    found = []
    for place in range(BINS):
        inside = places == place
        if n := int(inside.sum()):
            share = wilson_interval(int(right[inside].sum()), n)
            found.append(
                {
                    "low": place / BINS,
                    "high": (place + 1) / BINS,
                    "n": n,
                    "confidence": float(rows.scores[inside].mean()),
                    "accuracy": share.estimate,
                    "interval": [share.low, share.high],
                }
            )
    return found


def _slices(rows: HeldOut) -> list[dict[str, Any]]:
    """By length, in words; slices without rows are left out."""
    right, found = rows.right, []
    for low, high in LENGTHS:
        inside = (rows.n_words >= low) & (rows.n_words <= high)
        if n := int(inside.sum()):
            share = wilson_interval(int(right[inside].sum()), n)
            name = f"{low}-{high} words" if high < LENGTHS[-1][1] else f"{low} words and more"
            found.append({"slice": name, "n": n, "accuracy": share.estimate, "interval": [share.low, share.high]})
    return found


def _examples(rows: HeldOut) -> list[str]:
    """Short texts, each of another label and rightly sorted, for a visitor to try."""
    found: dict[Labels, str] = {}
    for place in np.argsort(-rows.scores, kind="stable").tolist() if rows.texts else []:
        labels, text = rows.labels[place], rows.row(place)["text"]
        if labels and labels == rows.true_labels[place] and len(text) <= EXAMPLE_CHARS:
            found.setdefault(labels, text)
    return list(found.values())[:EXAMPLES]


def pick(rows: HeldOut, true_label: str | None, label: str | None, cell: Cell | None, most: int) -> dict[str, Any]:
    """The rows of these labels, or of one cell of `label`; without any, all that are wrong. First the wrong ones, then the
    right ones, each the surest first.

    Raises ConfigError.
    """
    if cell is not None and (label is None or true_label is not None):
        raise ConfigError(f"cell={cell} is of one label: give label, and no true_label")
    asked = true_label is not None or label is not None
    places = [
        place
        for place, (true, said) in enumerate(zip(rows.true_labels, rows.labels, strict=True))
        if (true != said or asked) and _fits(true, said, true_label, label, cell)
    ]
    right = rows.right
    places.sort(key=lambda place: (right[place], -rows.scores[place]))
    return {"found": len(places), "has_texts": rows.texts is not None, "rows": [rows.row(place) for place in places[:most]]}


def _fits(true: Labels, said: Labels, true_label: str | None, label: str | None, cell: Cell | None) -> bool:
    if cell is not None and label is not None:
        return _cell(label, true, said) == cell
    return (true_label is None or true_label in true) and (label is None or label in said)


def compare(before: HeldOut, after: HeldOut, label: str | None, most: int) -> dict[str, Any]:
    """Flips first: common rows that were right and are wrong now, then the reverse; with `label` by that label alone.

    Raises ConfigError without common rows.
    """
    pairs, matched_by = _common(before, after)
    old, new = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    was, now = before.right[old], after.right[new]
    change = bootstrap_share_difference(now, was)
    truth = [after.true_labels[place] for place in new.tolist()]
    said = [before.labels[place] for place in old.tolist()], [after.labels[place] for place in new.tolist()]
    first, second = (was, now) if label is None else (_right_on(label, truth, labels) for labels in said)
    lost, won = (np.flatnonzero(flags).tolist() for flags in (first & ~second, ~first & second))

    def flip(place: int) -> dict[str, Any]:
        first, second = before.row(int(old[place])), after.row(int(new[place]))
        return {
            "text": second["text"] or first["text"],
            "true_labels": second["true_labels"],
            "before": first["labels"],
            "before_score": first["score"],
            "after": second["labels"],
            "after_score": second["score"],
        }

    return {
        "n": len(pairs),
        "matched_by": matched_by,
        "only_before": len(before.labels) - len(pairs),
        "only_after": len(after.labels) - len(pairs),
        "now_wrong": {"n": len(lost), "rows": [flip(place) for place in lost[:most]]},
        "now_right": {"n": len(won), "rows": [flip(place) for place in won[:most]]},
        "accuracy": {
            "before": float(was.mean()),
            "after": float(now.mean()),
            "difference": change.estimate,
            "interval": [change.low, change.high],
        },
        "by_label": _by_label(truth, *said),
    }


def _right_on(label: str, truth: Sequence[Labels], said: Sequence[Labels]) -> NDArray[np.bool_]:
    """Whether each row was given the label exactly where it has it."""
    return np.array([(label in true) == (label in given) for true, given in zip(truth, said, strict=True)], bool)


def _common(before: HeldOut, after: HeldOut) -> tuple[list[tuple[int, int]], str]:
    """Pairs of places that hold the same row: by text, or by place where both were tested on what looks like the same rows."""
    if before.texts is not None and after.texts is not None:
        places = {pair: place for place, pair in enumerate(zip(before.texts, before.true_labels, strict=True))}
        keys = enumerate(zip(after.texts, after.true_labels, strict=True))
        pairs = [(places[key], place) for place, key in keys if key in places]
    else:
        same = before.true_labels == after.true_labels and np.array_equal(before.n_words, after.n_words)
        pairs = [(place, place) for place in range(len(after.labels))] if same else []
    if not pairs:
        raise ConfigError(
            "the two versions were not tested on common rows; only versions with the same test rows, or whose test texts are in "
            "the registry (export.test_texts=true), can be compared row by row"
        )
    return pairs, "text" if before.texts is not None and after.texts is not None else "place"


def _by_label(truth: Sequence[Labels], old: Sequence[Labels], new: Sequence[Labels]) -> list[dict[str, Any]]:
    """Recall of each label before and after, the largest fall first; and on how many rows it is wrong now, and right now."""
    found = []
    for label in sorted(frozenset().union(*truth)):
        rows = [place for place, true in enumerate(truth) if label in true]
        was, now = _right_on(label, truth, old), _right_on(label, truth, new)
        found.append(
            {
                "label": label,
                "n": len(rows),
                "before": float(was[rows].mean()),
                "after": float(now[rows].mean()),
                "now_wrong": int((was & ~now).sum()),
                "now_right": int((~was & now).sum()),
            }
        )
    return sorted(found, key=lambda row: float(row["after"]) - float(row["before"]))
