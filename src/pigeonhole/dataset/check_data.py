"""`uv run check-data data=FILE`: is this file fit to train on? JSON on stdout, a table on stderr, a data card by URL."""

from dataclasses import dataclass, field
from typing import Any

from pigeonhole.command import command
from pigeonhole.configuration import compose, setting
from pigeonhole.dataset.check import check_rows, files_of, verify_files
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows


@dataclass
class CheckConfig:
    data: DataConfig = field(default_factory=DataConfig)
    card: str | None = setting(None, "URL of a Markdown data card to write, with its plots beside it")


def run(arguments: list[str]) -> dict[str, Any]:
    """`data=FILE` is short for `data.path=FILE`."""
    config = compose(CheckConfig, "check_data", [_in_full(argument) for argument in arguments])
    digests = verify_files(config.data)
    checked = check_rows(config.data, digests, {name: read_rows(config.data, url) for name, url in files_of(config.data).items()})
    return checked.report()


def _in_full(argument: str) -> str:
    return f"data.path={argument.removeprefix('data=')}" if argument.startswith("data=") else argument


main = command(run)
