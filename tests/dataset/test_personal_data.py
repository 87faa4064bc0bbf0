import time

import pytest

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.personal_data import is_card_number, is_iban, kinds_of
from pigeonhole.dataset.read import read_rows


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("mail me at jo@ex.com IBAN DK5000400440116243", ["email", "iban"]),
        ("first.last+tag@mail.example.org!", ["email"]),
        ("my iban is GB82 WEST 1234 5698 7654 32, thanks", ["iban"]),
        ("card 4111 1111 1111 1111 was refused", ["card_number"]),
        ("4111-1111-1111-1111 and jo@ex.com", ["email", "card_number"]),
        ("call +45 12 34 56 78", ["phone"]),
        ("call 0045 12345678 please", ["phone"]),
        ("call (555) 123-4567", ["phone"]),
        ("ring 020 7946 0958", ["phone"]),
    ],
)
def test_personal_data_are_recognised(text: str, kinds: list[str]) -> None:
    assert list(kinds_of(text)) == kinds


@pytest.mark.parametrize(
    "text",
    [
        "order 48213 of 2024-01-31",
        "it costs 1,299.00 and i paid 1.299.000",
        "error 0x80070057 at 12:30",
        "serial 1234567",
        "see you @ the shop",
        "DK5000400440116244",
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
    ],
)
def test_other_numbers_are_not(text: str) -> None:
    assert list(kinds_of(text)) == []


def test_check_numbers_are_checked() -> None:
    assert is_iban("DE89370400440532013000")
    assert not is_iban("DE88370400440532013000")
    assert not is_iban("DE8937040044")
    assert is_card_number("378282246310005")
    assert not is_card_number("378282246310006")
    assert not is_card_number("4111 1111 1111")


@pytest.mark.parametrize("unit", ["1 ", "a@", "AA11", "12-34.", "(1", "a.a@a.", "+1 "])
def test_no_text_makes_the_patterns_slow(unit: str) -> None:
    begin = time.process_time()
    list(kinds_of((unit * 100_000)[:100_000]))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("name", ["tickets.csv", "shifted.csv", "out_of_scope.csv"])
def test_the_package_s_own_data_hold_none(name: str) -> None:
    config = DataConfig(path=f"package://pigeonhole/dataset/tickets/{name}")
    assert not [row.line for row in read_rows(config) if list(kinds_of(row.text))]
