"""A data card: what the check saw, as Markdown with two plots beside it. Shows labels and counts, never a text."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pigeonhole import storage
from pigeonhole.dataset.check import Checked
from pigeonhole.dataset.statistics import length_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LABELS = 200
MAX_BARS = 40


def write_card(url: str, checked: Checked) -> None:
    """Write the card to `url` and its plots beside it. Raises StorageError."""
    stem = url.removesuffix(".md")
    plots = {
        "Rows per label": (f"{stem}.labels.png", plot_labels(checked.labels)),
        "Characters per text": (f"{stem}.characters.png", plot_characters(checked.chars)),
    }
    for plot_url, image in plots.values():
        storage.write(plot_url, image)
    names = {title: plot_url.rsplit("/", 1)[-1] for title, (plot_url, _) in plots.items()}
    storage.write(url, card_text(checked, names).encode())


def card_text(checked: Checked, plots: dict[str, str]) -> str:
    """`plots` maps a title to an image's name."""
    splits, rows = checked.splits.items(), sum(checked.splits.values())
    urls = {name: file.url for name, file in checked.files.items()}
    lengths = length_summary(checked.chars)
    lines = [
        "# Data card",
        "",
        "Written by `check-data`, which sees the rows only: their source, licence and consent are for their owner to state.",
        "",
        *_table(("split", "file", "rows"), [(name, urls.get(name, "split off"), f"{n:,}") for name, n in splits]),
        f"{rows:,} rows, {len(checked.labels):,} labels; sha256 `{checked.sha256}`.",
        "",
        "## Labels",
        "",
        *_table(("label", "rows", "share"), [(label, f"{n:,}", f"{n / rows:.1%}") for label, n in _listed(checked.labels)]),
        *([f"and {len(checked.labels) - MAX_LABELS:,} more.", ""] if len(checked.labels) > MAX_LABELS else []),
        "## Lengths",
        "",
        *_table(("characters", "per text"), [(name, f"{value:,.0f}") for name, value in lengths.items()]),
        *(f"![{title}]({_escaped(name)})\n" for title, name in plots.items()),
        "## What looks suspicious",
        "",
        *_findings(checked),
    ]
    return "\n".join(lines)


def plot_labels(labels: dict[str, int]) -> bytes:
    """PNG: a bar per label, or, with many labels, their sizes in order."""
    from matplotlib.figure import Figure  # half a second that only a card pays

    counts = dict(sorted(labels.items(), key=lambda item: item[1]))
    if len(counts) > MAX_BARS:
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.add_subplot(xlabel="labels, by size", ylabel="rows")
        axes.fill_between(range(len(counts)), list(counts.values()), step="mid")
        axes.set_ylim(bottom=0)
    else:
        figure = Figure(figsize=(7, 1 + 0.3 * len(counts)), layout="constrained")
        axes = figure.add_subplot(xlabel="rows")
        axes.barh(range(len(counts)), list(counts.values()))
        axes.set_yticks(range(len(counts)), [_short(label) for label in counts], parse_math=False)
    return _png(figure)


def plot_characters(chars: NDArray[np.int64]) -> bytes:
    """PNG: a histogram over a logarithmic axis, for lengths differ by factors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="characters per text", ylabel="texts", xscale="log")
    axes.hist(chars, bins=np.geomspace(max(chars.min(), 1), chars.max() + 1, 40).tolist())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a label in a script that the font lacks shows boxes
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _findings(checked: Checked) -> list[str]:
    if not checked.suspicious:
        return ["Nothing.", ""]
    rows = [
        (finding.finding.replace("_", " "), f"{finding.count:,}", ", ".join(map(str, finding.lines)), finding.says)
        for finding in checked.suspicious
    ]
    return _table(("finding", "rows", "first lines", "meaning"), rows)


def _listed(labels: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(labels.items(), key=lambda item: -item[1])[:MAX_LABELS]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [*("| " + " | ".join(map(_escaped, row)) + " |" for row in (header, *[("---",) * len(header)], *rows)), ""]


def _escaped(text: str) -> str:
    """A label may hold anything; in Markdown it shall show as itself."""
    return re.sub(r"([\\`*_\[\]<>|~$#&])", r"\\\1", " ".join(text.split()))


def _short(label: str) -> str:
    return label if len(label) <= 40 else label[:39] + "…"
