"""`uv run compare-data before=FILE after=FILE`: what a change of the data did, in Markdown; exit 4 where a limit says no.

Both files pass check-data's rules first. Texts are told apart by their normalised form, so a new spelling is no new row. Shows
line numbers and counts, never a text. Knows nothing of models: whether the change helps is the gate's to say.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pigeonhole import storage
from pigeonhole.command import command, say
from pigeonhole.configuration import compose
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.load import Dataset, load_dataset
from pigeonhole.dataset.read import Row, shown
from pigeonhole.errors import ConfigError, GateError
from pigeonhole.options import setting

SHOWN_LINES = 5


@dataclass
class CompareConfig:
    """What did a change of the data do? Exit code 4 where a limit says no.

    uv run compare-data before=old.csv after=new.csv
    """

    before: str | None = setting(None, "URL of the rows as they were; needed")
    after: str | None = setting(None, "URL of the rows as they are to be; needed")
    report: str | None = setting(None, "URL of the Markdown report to write")
    data: DataConfig = field(default_factory=DataConfig)
    max_removed: float = setting(0.1, "share of the rows that may go", ge=0, le=1)
    max_relabelled: float = setting(0.05, "share of the texts in both that may get another label", ge=0, le=1)
    max_shift: float = setting(0.1, "how far the label mix may move: half the sum of the differences of shares", ge=0, le=1)
    max_leaked: float = setting(0.05, "share of the old test texts that may now be trained on", ge=0, le=1)


@dataclass(frozen=True)
class Change:
    """Rows of `after` (added, relabelled, leaked) and of `before` (removed); counts of rows by label on both sides."""

    added: list[Row]
    removed: list[Row]
    relabelled: list[tuple[Row, str]]  # the row, and the label that its text had
    leaked: list[Row]  # trained on now, in the test split before
    labels: dict[str, tuple[int, int]]
    rows: tuple[int, int]
    texts_in_both: int
    tested_before: int

    @property
    def shift(self) -> float:
        """Total variation distance of the two label mixes, 0 to 1."""
        return sum(abs(before / self.rows[0] - after / self.rows[1]) for before, after in self.labels.values()) / 2


def run(arguments: list[str]) -> dict[str, Any]:
    """Raises DataError for a side that check-data refuses, GateError for a change over a limit."""
    config = compose(CompareConfig, "compare_data", arguments)
    if not config.before or not config.after:
        raise ConfigError(f"before={config.before}, after={config.after}: both are needed, two files or URLs")
    sides = [load_dataset(replace(config.data, path=path)) for path in (config.before, config.after)]
    change = compare(*sides)
    refusals = refuse(change, config)
    report = "\n".join(markdown(change, refusals)) + "\n"
    say(report)
    if config.report:
        storage.write(config.report, report.encode())
    result = {
        "rows": {"before": change.rows[0], "after": change.rows[1]},
        **{name: len(getattr(change, name)) for name in ("added", "removed", "relabelled", "leaked")},
        "shift": round(change.shift, 4),
        "labels": {label: {"before": before, "after": after} for label, (before, after) in change.labels.items()},
        "sha256": {"before": sides[0].sha256, "after": sides[1].sha256},
        "refusals": refusals,
    }
    if refusals:
        raise GateError(f"the change is refused: {'; '.join(refusals)}", result)
    return result


main = command(run)


def compare(before: Dataset, after: Dataset) -> Change:
    old, new = _by_text(before), _by_text(after)
    labels = Counter(row.label for row in old.values()), Counter(row.label for row in new.values())
    tested = {normalise(row.text) for row in before.split.test}
    trained = {normalise(row.text): row for row in after.split.train}
    return Change(
        added=[row for text, row in new.items() if text not in old],
        removed=[row for text, row in old.items() if text not in new],
        relabelled=[(row, old[text].label) for text, row in new.items() if text in old and old[text].label != row.label],
        leaked=[row for text, row in trained.items() if text in tested],
        labels={label: (labels[0][label], labels[1][label]) for label in sorted({*labels[0], *labels[1]})},
        rows=(len(old), len(new)),
        texts_in_both=len(old.keys() & new.keys()),
        tested_before=len(tested),
    )


def _by_text(dataset: Dataset) -> dict[str, Row]:
    """By normalised text, in the order of the file; of a text that stands there twice, its first row."""
    split = dataset.split
    rows = sorted([*split.train, *split.validation, *split.test], key=lambda row: row.line, reverse=True)
    return dict(reversed({normalise(row.text): row for row in rows}.items()))


def refuse(change: Change, config: CompareConfig) -> list[str]:
    """What is over a limit, in words; empty for a change that may come in."""
    gone = [label for label, (_, after) in change.labels.items() if not after]
    shares = {
        "removed": (len(change.removed), change.rows[0], config.max_removed),
        "relabelled": (len(change.relabelled), change.texts_in_both, config.max_relabelled),
        "leaked": (len(change.leaked), change.tested_before, config.max_leaked),
    }
    found = [f"label {shown(label)} has no rows any more" for label in gone]
    found += [
        f"{name}: {count} of {of} ({count / of:.1%}), max_{name}={limit} allows {limit:.1%}"
        for name, (count, of, limit) in shares.items()
        if of and count / of > limit
    ]
    if change.shift > config.max_shift:
        found.append(f"the label mix moved by {change.shift:.1%}, max_shift={config.max_shift} allows {config.max_shift:.1%}")
    return found


def markdown(change: Change, refusals: list[str]) -> Iterator[str]:
    yield "### Data change"
    yield ""
    yield f"{change.rows[0]:,} texts before, {change.rows[1]:,} after; label mix moved by {change.shift:.1%}."
    yield ""
    yield "| what | texts | lines |"
    yield "|---|---|---|"
    yield f"| added | {len(change.added):,} | {_lines(change.added)} |"
    yield f"| removed (lines of the old file) | {len(change.removed):,} | {_lines(change.removed)} |"
    yield f"| relabelled | {len(change.relabelled):,} | {_lines([row for row, _ in change.relabelled])} |"
    yield f"| leaked: tested on before, trained on now | {len(change.leaked):,} | {_lines(change.leaked)} |"
    yield ""
    yield "| label | before | after | share before | share after |"
    yield "|---|---|---|---|---|"
    for label, (before, after) in change.labels.items():
        shares = f"{before / change.rows[0]:.1%} | {after / change.rows[1]:.1%}"
        yield f"| {_cell(label)} | {before:,} | {after:,} | {shares} |"
    moves = Counter((before, row.label) for row, before in change.relabelled)
    if moves:
        yield from _moves(moves)
    yield ""
    yield "Refused: " + "; ".join(refusals) if refusals else "Within all limits."


def _moves(moves: Mapping[tuple[str, str], int]) -> Iterator[str]:
    yield ""
    yield "| relabelled from | to | texts |"
    yield "|---|---|---|"
    for (before, after), count in sorted(moves.items(), key=lambda item: (-item[1], item[0])):
        yield f"| {_cell(before)} | {_cell(after)} | {count:,} |"


def _lines(rows: list[Row]) -> str:
    more = ", …" if len(rows) > SHOWN_LINES else ""
    return ", ".join(str(row.line) for row in rows[:SHOWN_LINES]) + more


def _cell(label: str) -> str:
    """A label cannot break the table."""
    return label.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
