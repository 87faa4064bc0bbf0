"""What the data card of concerns claims."""

from collections import Counter
from pathlib import Path

import pytest
from tests.dataset.test_tickets import FOLDER

from pigeonhole.dataset.concerns.compose import compose, encode, run
from pigeonhole.dataset.config import TICKETS, TICKETS_OUT_OF_SCOPE, DataConfig
from pigeonhole.dataset.label_sets import split_labels
from pigeonhole.dataset.load import load_dataset
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import ConfigError

CONCERNS = FOLDER.parent / "concerns" / "concerns.csv"
CONFIG = DataConfig(path=str(CONCERNS), task="multi_label")


def test_the_file_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    assert run([str(tmp_path / "again.csv")]) == {"size_bytes": CONCERNS.stat().st_size}
    assert (tmp_path / "again.csv").read_bytes() == CONCERNS.read_bytes() == encode()
    with pytest.raises(ConfigError, match="usage"):
        run([])


def test_rows_have_as_many_concerns_as_the_card_says() -> None:
    counts = Counter(len(split_labels(row.label)) for row in read_rows(CONFIG))
    assert counts == {0: 205, 1: 1_000, 2: 640, 3: 160}


def test_no_message_of_tickets_is_part_of_two_rows() -> None:
    tickets = list(read_rows(DataConfig(path=TICKETS)))
    rows = list(compose(tickets, list(read_rows(DataConfig(path=TICKETS_OUT_OF_SCOPE)))))
    texts = "\0".join(text for text, _ in rows)
    long = [row.text for row in tickets if len(row.text) > 40]
    assert max(texts.count(text) for text in long) == 1


def test_each_label_is_in_each_split_in_its_share() -> None:
    split = load_dataset(CONFIG).split
    for side, share in ((split.train, 0.8), (split.validation, 0.1), (split.test, 0.1)):
        counts = Counter(label for row in side for label in split_labels(row.label))
        assert len(counts) == 8
        assert all(abs(count - 345 * share) <= 12 for count in counts.values())
