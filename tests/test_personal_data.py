import time

import pytest
from benchmarks.log.redaction import measure

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.personal_data import is_card_number, is_iban, kinds_of, redacted


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


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("mail jo@ex.com, or first.last+tag@mail.example.org!", "mail [email], or [email]!"),
        ("m\u00fcller@b\u00fccher.example and root@localhost", "[email] and [email]"),
        ("my iban is GB82 WEST 1234 5698 7654 32 thanks", "my iban is [iban] thanks"),
        ("nl91abna0417164300 please", "[iban] please"),
        ("DK50\u00a00040\u00a00440\u00a01162\u00a043 and +46 - (0)64 - 28 - 84", "[iban] and [number]"),
        ("card 4111-1111-1111-1111, +49 (0) 30 / 123 45 67 ext. 12", "card [card], [number]"),
        ("tel\uff1a\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667", "tel\uff1a[number]"),
        (
            "on 2026-03-01 12:30 i paid 1.299.000,50 EUR or $1,299,000",
            "on 2026-03-01 12:30 i paid 1.299.000,50 EUR or $1,299,000",
        ),
        ("order 482136 of AB-1234, see you @ the shop at 10:30", "order 482136 of AB-1234, see you @ the shop at 10:30"),
        ("call4155550132now, mob9876543210 or id_4111111111111111", "call[number]now, mob[number] or id_[card]"),
        ("4111\u200b1111\u200b1111\u200b1111, +46\u00ad64\u200e28\u2060 84\u202c", "[card], [number]\u202c"),
        ("o'hara@example.ie or 'jo@ex.com'", "[email] or '[email]'"),
        ("O'Brien's order A12345, flight LH1234, d'Arcy's", "O'Brien's order A12345, flight LH1234, d'Arcy's"),
        ("order 48213600", "order [number]"),  # nobody can tell it from a telephone number
    ],
)
def test_what_may_be_personal_is_taken_out_and_the_rest_stays(text: str, kept: str) -> None:
    assert redacted(text) == kept


@pytest.mark.parametrize(
    "unit", ["1 ", "a@", "AA11", "12-34.", "(1", "a.a@a.", "+1 ", "1.1.19", "12 345 EUR", "$1,", '"', "1---"]
)
def test_no_text_makes_taking_out_slow(unit: str) -> None:
    begin = time.process_time()
    redacted((unit * 100_000)[:100_000])
    assert time.process_time() - begin < 5


def test_recall_over_a_seeded_corpus_of_many_countries() -> None:
    """The corpus is made by other libraries; the whole of it: benchmarks/log/redaction.py."""
    found = measure(seed=7, each=400)
    assert found.recall == {kind: pytest.approx(1, abs=0.005) for kind in ("email", "phone", "iban", "card")}
    assert found.precision > 0.9
    assert found.messages_changed / found.messages < 0.01
