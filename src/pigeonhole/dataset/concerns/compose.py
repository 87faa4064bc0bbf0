"""`python -m pigeonhole.dataset.concerns.compose FILE`: the rows of concerns.csv, made again from tickets, byte for byte.

Each message of tickets is used at most once, so no text stands in two rows and no split can leak into another.
"""

import csv
import io
import random
from collections.abc import Iterator, Sequence

from pigeonhole import storage
from pigeonhole.command import command
from pigeonhole.dataset.config import TICKETS, TICKETS_OUT_OF_SCOPE, DataConfig
from pigeonhole.dataset.label_sets import join_labels
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.errors import ConfigError

SIZES = {1: 1_000, 2: 640, 3: 160}  # concerns a message -> messages; with those of no concern they use 2,760 of 2,880 tickets
JOINTS = (" ", "\n\n", " Also: ", " Another thing. ", " And while I am writing: ", " PS ", " One more: ", "\n")


def compose(tickets: Sequence[Row], out_of_scope: Sequence[Row], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Text and labels of each row, in random order; concerns of one message are of different queues."""
    draw = random.Random(seed)
    left = draw.sample(list(tickets), len(tickets))
    rows = [(row.text, "") for row in out_of_scope]
    for concerns, messages in sorted(SIZES.items(), reverse=True):
        for _ in range(messages):
            parts = _take_of_different_queues(left, concerns)
            text = parts[0].text
            for part in parts[1:]:
                text += draw.choice(JOINTS) + part.text
            rows.append((text, join_labels(part.label for part in parts)))
    yield from draw.sample(rows, len(rows))


def _take_of_different_queues(left: list[Row], concerns: int) -> list[Row]:
    """Out of `left`, from its end."""
    taken: list[Row] = []
    place = len(left) - 1
    while len(taken) < concerns:
        if left[place].label not in {row.label for row in taken}:
            taken.append(left.pop(place))
        place -= 1
    return taken


def encode() -> bytes:
    """The whole file."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("text", "label"))
    writer.writerows(compose(list(read_rows(DataConfig(path=TICKETS))), list(read_rows(DataConfig(path=TICKETS_OUT_OF_SCOPE)))))
    return stream.getvalue().encode()


def run(arguments: list[str]) -> dict[str, int]:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError("usage: python -m pigeonhole.dataset.concerns.compose FILE")
    data = encode()
    storage.write(storage.to_url(arguments[0]), data)
    return {"size_bytes": len(data)}


main = command(run)

if __name__ == "__main__":
    main()
