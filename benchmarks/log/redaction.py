"""How much of what `redacted` has to take out it takes out, and what it takes besides.

    uv run python benchmarks/log/redaction.py [seed=0]

The corpus comes from libraries that know nothing of our patterns: faker (57 locales) and Google's phonenumbers (245 regions).
A value counts as taken out when not one of its digits, or neither its name nor its `@`, is left in the sentence around it.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import phonenumbers
from faker import Faker
from phonenumbers import PhoneNumberFormat

from pigeonhole.command import command, with_help
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.options import read_options, setting
from pigeonhole.personal_data import redacted

SENTENCES = (
    "please call {} tomorrow",
    "{} is mine",
    "my old one ({}) no longer works",
    "reach me at: {}.",
    "I wrote to support,{},and nobody answered!",
    "new:{}\nthanks",
    'they noted "{}" as mine',
    "meine Angabe ist {}, bitte prüfen",
    "c'est le {}; merci",
    "{}",
    "contact:tel:{}",
    "<{}>",
    "?id={}&x=",
    "/{}/",
    "**{}**",
)
DISGUISES = (
    "\u00a0",
    "\u2009",
    "\u2011",
    "\u2013",
    ".",
    "/",
    "  ",
    " - ",
)  # what programs and people put in place of a separator
LOCALES = [
    "en_US", "en_GB", "en_AU", "en_CA", "en_IE", "en_IN", "en_NZ", "en_BD", "de_DE", "de_AT", "de_CH", "fr_FR", "fr_CH",
    "fr_CA", "it_IT", "it_CH", "es_ES", "es_MX", "es_AR", "es_CL", "es_CO", "pt_PT", "pt_BR", "nl_NL", "nl_BE", "da_DK",
    "sv_SE", "no_NO", "fi_FI", "pl_PL", "cs_CZ", "sk_SK", "sl_SI", "hr_HR", "hu_HU", "ro_RO", "bg_BG", "el_GR", "tr_TR",
    "uk_UA", "ru_RU", "et_EE", "lt_LT", "lv_LV", "ja_JP", "zh_CN", "zh_TW", "ko_KR", "th_TH", "vi_VN", "id_ID", "hi_IN",
    "fa_IR", "ar_AE", "ar_SA", "he_IL", "az_AZ",
]  # fmt: skip
NO_IBANS = ("TH", "AR", "US", "CA", "AU")  # faker makes some up where there are none
FORMATS = (PhoneNumberFormat.E164, PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.NATIONAL, PhoneNumberFormat.RFC3966)


def phones(draw: random.Random, fakers: list[Faker]) -> Iterator[str]:
    """Seven digits or more: shorter ones (some islands and service numbers) are promised to nobody."""
    regions = sorted(phonenumbers.SUPPORTED_REGIONS)
    while True:
        if draw.random() < 0.5:
            value = draw.choice(fakers).phone_number()
        else:
            kind = draw.choice((phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE))
            number = phonenumbers.example_number_for_type(draw.choice(regions), kind)
            if number is None:
                continue
            value = phonenumbers.format_number(number, draw.choice(FORMATS)).removeprefix("tel:")
        if sum(letter.isdigit() for letter in value) >= 7:
            yield value


def ibans(draw: random.Random, fakers: list[Faker]) -> Iterator[str]:
    """Printed in groups of four, in one piece, or in small letters."""
    while True:
        value = draw.choice(fakers).iban()
        if value.startswith(NO_IBANS):
            continue
        grouped = " ".join(value[start : start + 4] for start in range(0, len(value), 4))
        yield draw.choice((value, grouped, grouped, grouped.replace(" ", "-"), value.lower()))


def cards(draw: random.Random, fakers: list[Faker]) -> Iterator[str]:
    while True:
        value = draw.choice(fakers).credit_card_number()
        step = draw.choice((4, 4, len(value)))
        yield draw.choice((" ", "-")).join(value[start : start + step] for start in range(0, len(value), step))


def emails(draw: random.Random, fakers: list[Faker]) -> Iterator[str]:
    while True:
        value = draw.choice(fakers).email()
        name, _, host = value.partition("@")
        yield draw.choice((value, value, f"{name}+{draw.choice(('shop', 'tag.1'))}@{host}", value.upper(), f"{name}@mail.{host}"))


def harmless(draw: random.Random) -> tuple[str, str]:
    """A number that is nobody's, and its kind."""
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1990, 2029)
    made = {
        "date": draw.choice((f"{year}-{month:02}-{day:02}", f"{day:02}.{month:02}.{year}", f"{month}/{day}/{year}")),
        "date and time": f"{year}-{month:02}-{day:02} {draw.randint(0, 23):02}:{draw.randint(0, 59):02}",
        "time": f"{draw.randint(0, 23):02}:{draw.randint(0, 59):02}",
        "amount": draw.choice(
            (f"{draw.randint(1, 99999)}.{draw.randint(0, 99):02} EUR", f"${draw.randint(1, 999)},{day:02}0.50")
        ),
        "percentage": f"{draw.uniform(0, 100):.2f} %",
        "version": f"{draw.randint(1, 20)}.{draw.randint(0, 30)}.{draw.randint(0, 99)}",
        "post code": draw.choice((f"{draw.randint(10000, 99999)}", "SW1A 2AA", f"{draw.randint(1000, 9999)} AB")),
        "order of 6 digits": f"#{draw.randint(100000, 999999)}",
        "order of 8 digits": f"#{draw.randint(10**7, 10**8 - 1)}",
        "parcel of 12 digits": f"{draw.randint(10**11, 10**12 - 1)}",
        "product": f"{draw.choice('ABCX')}{draw.choice('KLM')}-{draw.randint(100, 99999)}",
    }
    kind = draw.choice(sorted(made))
    return kind, made[kind]


def disguised(value: str, draw: random.Random) -> str:
    """One in three has another separator throughout, one in twenty wide or Arabic digits."""
    if draw.random() < 1 / 3:
        value = re.sub("[ -]", draw.choice(DISGUISES), value)
    if draw.random() < 1 / 20:
        value = value.translate({ord("0") + digit: draw.choice((0xFF10, 0x0660)) + digit for digit in range(10)})
    return value


def is_gone(value: str, sentence: str, kind: str) -> bool:
    found = redacted(sentence.format(value)).replace("[email]", "")
    if kind == "email":
        return "@" not in found and value.partition("@")[0] not in found
    return not any(letter.isdigit() for letter in found)


KINDS: dict[str, Callable[[random.Random, list[Faker]], Iterator[str]]] = {
    "email": emails,
    "phone": phones,
    "iban": ibans,
    "card": cards,
}


@dataclass(frozen=True)
class Options:
    seed: int = setting(0, "of the corpus", ge=0)
    each: int = setting(20_000, "values of each kind, and as many harmless numbers", ge=100)


@with_help(__doc__, Options)
def run(arguments: list[str]) -> Any:
    options = read_options(Options, arguments)
    return measure(options.seed, options.each)


@dataclass(frozen=True)
class Found:
    """Shares by kind; `messages` are hand-written ones, in which there is nothing to take out."""

    recall: dict[str, float]
    missed: dict[str, list[str]]
    harmless_kept: dict[str, float]
    precision: float
    messages: int
    messages_changed: int


def measure(seed: int, each: int) -> Found:
    """Over `each` values of each kind, and as many harmless numbers."""
    draw = random.Random(seed)
    fakers = [Faker(locale) for locale in LOCALES]
    for number, faker in enumerate(fakers):
        faker.seed_instance(seed * 1000 + number)
    recall, missed = {}, {}
    for kind, make in KINDS.items():
        values = make(draw, fakers)
        misses = []
        for _ in range(each):
            value, sentence = next(values), draw.choice(SENTENCES)
            value = value if kind == "email" else disguised(value, draw)
            if not is_gone(value, sentence, kind):
                misses.append(sentence.format(value))
        recall[kind] = 1 - len(misses) / each
        missed[kind] = misses
    kept: dict[str, list[bool]] = {}
    for _ in range(each):
        kind, value = harmless(draw)
        sentence = draw.choice(SENTENCES).format(value)
        kept.setdefault(kind, []).append(redacted(sentence) == sentence)
    spared = {kind: sum(found) / len(found) for kind, found in sorted(kept.items())}
    taken = sum(sum(not each for each in found) for found in kept.values())
    right = sum(round(share * each) for share in recall.values())
    texts = [
        row.text
        for name in ("tickets", "shifted", "out_of_scope")
        for row in read_rows(DataConfig(path=f"package://pigeonhole/dataset/tickets/{name}.csv"))
    ]
    changed = sum(redacted(text) != text for text in texts)
    return Found(recall, missed, spared, right / (right + taken), len(texts), changed)


if __name__ == "__main__":
    command(run)()
