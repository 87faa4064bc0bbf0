"""`uv run report base=… candidate=…`: what a pull request changes in a model, as Markdown with pictures; moves nothing.

Flips come first: rows that were right and are wrong now. It says "a difference" only where it is one: exact paired tests over all
rows, each label and each length, adjusted together (Holm 1979), so that two equal models are called different in at most 5 % of
cases.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import compress
from math import comb
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pigeonhole import metrics, storage
from pigeonhole.bundle import Bundle, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import command, say
from pigeonhole.configuration import compose
from pigeonhole.dataset.compare import compare as compare_data
from pigeonhole.dataset.label_sets import join_labels
from pigeonhole.errors import ConfigError
from pigeonhole.evaluation.labelled import (
    Labelled,
    RowsConfig,
    label_ids,
    learned_note,
    read_labelled,
    read_own_rows,
    read_own_split,
    thresholds_of,
)
from pigeonhole.evaluation.score import for_many, predict_rows, time_each
from pigeonhole.evaluation.slices import text_masks
from pigeonhole.metrics import (
    Ids,
    Interval,
    bootstrap_difference,
    bootstrap_share_difference,
    expected_calibration_error,
    predict,
)
from pigeonhole.options import setting

SHOWN_FLIPS = 20
SHOWN_CHARS = 120
TIMED = 50
ALPHA = 0.05

Flags = NDArray[np.bool_]


@dataclass
class ReportConfig:
    """What is different between two bundles, on the same rows? Moves nothing.

    uv run report base=BUNDLE candidate=BUNDLE
    """

    base: str | None = setting(None, "URL of the bundle as it is; needed")
    candidate: str | None = setting(None, "URL of the bundle as it is to be; needed")
    data: RowsConfig = field(default_factory=RowsConfig)
    threads: int = setting(0, "threads of the models; 0: one a core", ge=0, le=1024)
    seed: int = setting(0, "seed of the intervals", ge=0, lt=2**32)
    out: str = setting("report", "URL of a folder for report.md, its pictures and report.json")


@dataclass(frozen=True)
class Part:
    """All rows, or those of a label or a length: the change of accuracy, and how likely chance alone does as much."""

    kind: str
    name: str
    n: int
    difference: Interval
    p: float


@dataclass(frozen=True)
class Comparison:
    parts: tuple[Part, ...]
    different: tuple[str, ...]  # the parts that differ for certain, adjusted for their number
    lost: Ids  # rows that were right and are wrong now
    won: Ids

    @property
    def verdict(self) -> str:
        return "a difference" if self.different else "no difference"


def compare(
    true_ids: Ids, base_ids: Ids, candidate_ids: Ids, labels: Sequence[str], slices: Mapping[str, Flags], seed: int
) -> Comparison:
    """What two bundles answer to the same rows: (n,) each, or (n, c) where a row may have several labels."""
    right_before, right = metrics.right(true_ids, base_ids), metrics.right(true_ids, candidate_ids)
    masks = {("all", "all rows"): np.ones(len(true_ids), bool)}
    masks |= {("label", labels[label]): of_label for label, of_label in _of_labels(true_ids, len(labels))}
    masks |= {("slice", name): inside for name, inside in slices.items()}
    parts = tuple(
        Part(
            kind,
            name,
            int(inside.sum()),
            bootstrap_share_difference(right[inside], right_before[inside], seed),
            sign_test(int((right & ~right_before & inside).sum()), int((right_before & ~right & inside).sum())),
        )
        for (kind, name), inside in masks.items()
    )
    return Comparison(parts, tuple(_surely(parts)), np.flatnonzero(right_before & ~right), np.flatnonzero(right & ~right_before))


def _of_labels(true_ids: Ids, c: int) -> Iterator[tuple[int, Flags]]:
    """For each label that occurs, which rows have it."""
    for label in range(c):
        of_label = true_ids[:, label] > 0 if true_ids.ndim == 2 else true_ids == label
        if of_label.any():
            yield label, of_label


def sign_test(won: int, lost: int) -> float:
    """Two-sided and exact: the chance that fair coins fall at least as unevenly (McNemar 1947, its exact form)."""
    n = won + lost
    tail: int = sum(comb(n, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * float(Fraction(tail, 2**n)))


def _surely(parts: Sequence[Part]) -> Iterator[str]:
    """Holm's step-down: as long as each p is small enough for the number of those that are left."""
    for rank, part in enumerate(sorted(parts, key=lambda part: part.p)):
        if part.p > ALPHA / (len(parts) - rank):
            return
        yield part.name


def run(arguments: list[str]) -> dict[str, Any]:
    config = compose(ReportConfig, "report", arguments)
    if not config.base or not config.candidate:
        raise ConfigError(f"base={config.base}, candidate={config.candidate}: both are needed, URLs of bundles")
    storage.require_writable("out", config.out)
    began = time.perf_counter()
    bundles = [open_bundle(storage.to_url(url)) for url in (config.base, config.candidate)]
    if bundles[0].manifest.task != bundles[1].manifest.task:
        raise ConfigError(f"{bundles[1].url}: is {bundles[1].manifest.task}, {bundles[0].url} is {bundles[0].manifest.task}")
    if bundles[0].manifest.labels != bundles[1].manifest.labels:
        raise ConfigError(f"{bundles[1].url}: its labels are not those of {bundles[0].url}; they cannot be compared row by row")
    data = config.data
    rows = read_labelled(data.path, data, bundles[1].manifest.task) if data.path else read_own_split(bundles[1])[1]
    labels = bundles[0].manifest.labels
    true_ids = label_ids(rows, labels)
    classifiers = [for_many(Classifier.open(bundle, threads=config.threads)) for bundle in bundles]
    base, candidate = (predict_rows(each, rows.texts, f"score {each.manifest.version}") for each in classifiers)
    answers = [predict(found, thresholds_of(bundle.manifest)) for found, bundle in zip((base, candidate), bundles, strict=True)]
    found = compare(true_ids, answers[0], answers[1], labels, text_masks(rows.texts), config.seed)
    result: dict[str, Any] = {
        "verdict": found.verdict,
        "different": list(found.different),
        "base": bundles[0].manifest.version,
        "candidate": bundles[1].manifest.version,
        "data": rows.source,
        "rows": len(true_ids),
        "notes": [*learned_note("the base", bundles[0], rows), *learned_note("the candidate", bundles[1], rows)],
        "flips": {"now_wrong": len(found.lost), "now_right": len(found.won)},
        "macro_f1": _interval(bootstrap_difference(true_ids, answers[1], answers[0], config.seed)),
        "calibration_error": [expected_calibration_error(each, true_ids) for each in (base, candidate)],
        "latency_ms": [round(float(np.median(of_one)), 3) for of_one in time_each(classifiers, rows.texts[:TIMED])],
        "size_mb": [bundle.manifest.size_bytes(bundle.manifest.served) / 1e6 for bundle in bundles],
        "training_data": _data_difference(bundles),
        "parts": [
            {"kind": part.kind, "name": part.name, "n": part.n, "p": part.p, **_interval(part.difference)} for part in found.parts
        ],
    }
    from pigeonhole.evaluation import plots  # matplotlib takes a second to import

    files = {
        "report.md": "\n".join(markdown(result, found, rows, *(_said(each, labels) for each in answers))).encode(),
        "report.json": msgspec.json.format(msgspec.json.encode(result)),
        "labels.png": _picture(found),
        "reliability_base.png": plots.reliability_png(true_ids, base),
        "reliability_candidate.png": plots.reliability_png(true_ids, candidate),
    }
    for name, content in files.items():
        storage.write(storage.join(config.out, name), content)
    for note in result["notes"]:
        say(f"note: {note}")
    say(f"{found.verdict}: {len(found.lost)} rows are wrong now that were right, {len(found.won)} are right that were wrong")
    return {
        **result,
        "report": storage.to_url(storage.join(config.out, "report.md")),
        "seconds": {"total": round(time.perf_counter() - began, 3)},
    }


main = command(run)


def _interval(found: Interval) -> dict[str, Any]:
    return {"difference": found.estimate, "interval": [found.low, found.high]}


def _data_difference(bundles: Sequence[Bundle]) -> dict[str, Any]:
    """What the two learned from; `unknown` where the rows of one cannot be read any more."""
    digests = [bundle.manifest.provenance.get("data_sha256") for bundle in bundles]
    if digests[0] == digests[1]:
        return {"same_file": True}
    try:
        before, after = (read_own_rows(bundle)[1] for bundle in bundles)
    except ConfigError as error:
        return {"same_file": False, "unknown": str(error)}
    change = compare_data(before, after)
    return {
        "same_file": False,
        "rows": list(change.rows),
        "added": len(change.added),
        "removed": len(change.removed),
        "relabelled": len(change.relabelled),
        "leaked": len(change.leaked),
        "label_shift": round(change.shift, 4),
    }


def _picture(found: Comparison) -> bytes:
    from pigeonhole.evaluation import plots

    parts = [part for part in found.parts if part.kind != "slice"]
    return plots.difference_png([part.name for part in parts], [part.difference for part in parts], "change of accuracy")


def _said(ids: Ids, labels: Sequence[str]) -> list[str]:
    """Answers as rows have them."""
    if ids.ndim == 1:
        return [labels[label] for label in ids.tolist()]
    return [join_labels(compress(labels, given)) for given in ids.tolist()]


def markdown(
    result: Mapping[str, Any], found: Comparison, rows: Labelled, before: Sequence[str], after: Sequence[str]
) -> Iterator[str]:
    """Flips first, then where the difference is, then what else has changed."""
    yield f"# {result['candidate']} against {result['base']}: {found.verdict}"
    certain = f"For certain in: {', '.join(map(_cell, found.different))}." if found.different else "Nothing differs for certain."
    yield f"\n{result['rows']:,} rows of `{result['data']}`. {certain} Brackets hold 95 % intervals.\n"
    yield from (f"Note: {note}.\n" for note in result["notes"])
    for title, places in (("Was right, now wrong", found.lost), ("Was wrong, now right", found.won)):
        yield f"## {title}: {len(places)}\n"
        if len(places):
            yield "| text | true | base | candidate |\n|---|---|---|---|"
            for place in places[:SHOWN_FLIPS].tolist():
                row = rows.rows[place]
                cells = (row.text, row.label, before[place], after[place])
                yield f"| {' | '.join(map(_cell, cells))} |"
            yield f"\n{len(places) - SHOWN_FLIPS} more.\n" if len(places) > SHOWN_FLIPS else ""
    yield "## Change of accuracy\n\n![by label](labels.png)\n\n| | rows | change | p |\n|---|---|---|---|"
    for part in found.parts:
        change = part.difference
        yield f"| {_cell(part.name)} | {part.n} | {change.estimate:+.3f} [{change.low:+.3f}, {change.high:+.3f}] | {part.p:.3g} |"
    macro = result["macro_f1"]
    yield "\n## What else\n\n| | base | candidate |\n|---|---|---|"
    for name, key in (("calibration error", "calibration_error"), ("one text, ms", "latency_ms"), ("model, MB", "size_mb")):
        yield f"| {name} | {result[key][0]:.4g} | {result[key][1]:.4g} |"
    yield f"\nMacro-F1: {macro['difference']:+.4f} [{macro['interval'][0]:+.4f}, {macro['interval'][1]:+.4f}].\n"
    yield "| base | candidate |\n|---|---|\n| ![base](reliability_base.png) | ![candidate](reliability_candidate.png) |\n"
    yield "## Training data\n"
    yield "The same file.\n" if result["training_data"].get("same_file") else _cell(str(result["training_data"])) + "\n"


def _cell(text: str) -> str:
    """Safe inside a table: one line, no bar, no markup, not too long."""
    line = " ".join(text.split())
    shortened = line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + "…"
    return "".join(f"\\{sign}" if sign in "|`<>[]*_\\" else sign for sign in shortened)


if __name__ == "__main__":
    main()
