"""`uv run check-data data=FILE`: is this file fit to train on? JSON on stdout, a table on stderr, a data card by URL."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pigeonhole import storage
from pigeonhole.command import command, say
from pigeonhole.configuration import compose
from pigeonhole.dataset.amend import open_amendments
from pigeonhole.dataset.check import Checked, check_rows, files_of, require_not_read, verify_files
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import shown
from pigeonhole.dataset.statistics import length_summary
from pigeonhole.options import setting

SHOWN_LABELS = 20


@dataclass
class CheckConfig:
    """Is a file fit to train on? Refuses what is broken, reports what is suspicious.

    uv run check-data data.path=my.csv data.text=message data.label=queue
    """

    data: DataConfig = field(default_factory=DataConfig)
    card: str | None = setting(None, "URL of a Markdown data card to write, with its plots beside it")


def run(arguments: list[str]) -> dict[str, Any]:
    """`data=FILE` is short for `data.path=FILE`."""
    config = compose(CheckConfig, "check_data", [_in_full(argument) for argument in arguments])
    if config.card:
        require_not_read("card", config.card, config.data)
        storage.require_writable("card", config.card.rpartition("/")[0] or ".")
    digests = verify_files(config.data)
    amendments = open_amendments(config.data)
    rows = {name: amendments.rows(config.data, url) for name, url in files_of(config.data).items()}
    checked = check_rows(config.data, digests, rows)
    for line in table(checked):
        say(line)
    report = {**checked.report(), **amendments.report()}
    if config.card:
        from pigeonhole.dataset.card import write_card  # plots take half a second to import

        write_card(config.card, checked)
        report["card"] = config.card
    return report


def table(checked: Checked) -> Iterator[str]:
    """The report for a person at a terminal."""
    rows, lengths = sum(checked.splits.values()), length_summary(checked.chars)
    splits = ", ".join(f"{name} {count:,}" for name, count in checked.splits.items())
    yield f"{rows:,} rows, {len(checked.labels):,} labels; {splits}"
    yield f"characters per text: median {lengths['median']:,.0f}, 95 % up to {lengths['p95']:,.0f}, longest {lengths['max']:,.0f}"
    by_size = sorted(checked.labels.items(), key=lambda item: -item[1])
    width = max(len(shown(label)) for label in checked.labels)
    for label, count in by_size[:SHOWN_LABELS]:
        yield f"  {shown(label):{width}} {count:>9,} {count / rows:7.1%}"
    if len(by_size) > SHOWN_LABELS:
        yield f"  … and {len(by_size) - SHOWN_LABELS:,} more, the smallest with {_rows(by_size[-1][1])}"
    if not checked.suspicious:
        yield "nothing suspicious"
    for finding in checked.suspicious:
        more = ", …" if finding.count > len(finding.lines) else ""
        lines = ", ".join(map(str, finding.lines))
        yield f"suspicious: {finding.count:,} {finding.says} (lines {lines}{more})"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _in_full(argument: str) -> str:
    return f"data.path={argument.removeprefix('data=')}" if argument.startswith("data=") else argument


main = command(run)

if __name__ == "__main__":
    main()
