"""Strings that look like personal data: counted for a data card, taken out of what the prediction log keeps.

Counting wants few false finds; taking out wants few misses, and rather loses an order number than keeps a telephone number.
Names and addresses are beyond both.
"""

import re
from collections.abc import Iterator

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_NUMBER = re.compile(r"(?<![\w.])(?:\+|\()?\d(?:[ ()./-]{0,2}\d){6,18}(?![\w])")
_SEVEN_DIGITS = re.compile(r"\d(?:[ ()./-]{0,2}\d){6}")

_UNSEEN = r"\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff"  # comes along where a number is copied from a page
_BETWEEN = rf"[\s()\[\]{{}}./\\|~_*#:\u00b7\u2010-\u2015\u2212\u2022\uff0d{_UNSEEN}-]"  # what stands between digits
_ANY_EMAIL = re.compile(
    r"""(?:"[^"\n]{1,64}"|(?:[^\s@<>()\[\],;:"'|=]|(?<=\w)'(?=\w)){1,64})[@\uff20](?:\[[0-9A-Fa-f.:]{3,45}\]|[^\W_][\w.-]{0,253}[^\W_])"""
)
_ANY_IBAN = re.compile(rf"(?<![A-Za-z\d])[A-Za-z]{{2}}\d{{2}}(?:{_BETWEEN}{{0,4}}[A-Za-z\d]){{11,30}}")
_ANY_NUMBER = re.compile(
    rf"(?<!\d)[+(\uff0b]{{0,2}}\d(?:{_BETWEEN}{{0,4}}\d){{6,40}}(?:{_BETWEEN}{{0,2}}(?:ext\.?|x|#)\s?\d{{1,6}})?", re.IGNORECASE
)

_DAY, _MONTH, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d\d"
_ORDERS = ((_YEAR, _MONTH, _DAY), (_DAY, _MONTH, _YEAR), (_MONTH, _DAY, _YEAR))
_DATE = "|".join(re.escape(sign).join(order) for sign in "./-" for order in _ORDERS)
_TIME = r"(?:,?\s|T)\d?\d[:.]\d\d(?:[:.]\d\d)?"
_MONEY = r"(?:[$\u20ac\u00a3\u00a5]|EUR|USD|GBP|CHF|SEK|NOK|DKK|PLN|CZK|HUF)"
_SUM = r"\d{1,3}(?:(?:[.,' ]?\d{3}){1,3}|)(?:[.,]\d\d)?"
_HARMLESS = re.compile(
    rf"((?<!\d)(?<!\d[./-])(?:{_DATE})(?:{_TIME})?(?![./-]?\d)"
    rf"|{_MONEY}\s?{_SUM}(?![\d.,-]?\d)"
    rf"|(?<![\w.,+-]){_SUM}\s?{_MONEY}(?!\w))"
)

# ISO 13616, as registered with SWIFT: how long an IBAN is, by country.
_LENGTHS = {
    length: countries.split()
    for length, countries in {
        15: "NO",
        16: "BE BI",
        18: "DK FO FI GL NL SD FK",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK MN",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BF BJ CI CM DJ FR GR IT MC MG ML MR SM SN YE",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV AO CV GW KE MZ",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
}
_IBAN_LENGTH = {country: length for length, countries in _LENGTHS.items() for country in countries}


def kinds_of(text: str) -> Iterator[str]:
    """`email`, `iban`, `card_number`, `phone`: each at most once."""
    if "@" in text and _EMAIL.search(text):
        yield "email"
    if not _SEVEN_DIGITS.search(text):
        return
    ibans = [found for found in _IBAN.findall(text) if is_iban(found)]
    if ibans:
        yield "iban"
        for found in ibans:
            text = text.replace(found, " ")
    numbers = _NUMBER.findall(text)
    cards = [number for number in numbers if is_card_number(number)]
    if cards:
        yield "card_number"
    if any(_is_phone(number) for number in numbers if number not in cards):
        yield "phone"


def redacted(text: str) -> str:
    """The text with `[email]`, `[iban]`, `[card]` and `[number]` in place of what may be one.

    `[number]` is any number of seven digits or more, however it is written: telephone numbers have no other mark. Dates and
    amounts of money stay.
    """
    text = _ANY_EMAIL.sub("[email]", text)
    text = _ANY_IBAN.sub(_without_iban, text)
    parts = _HARMLESS.split(text)  # every second one is a date or an amount
    parts[::2] = [_ANY_NUMBER.sub(_without_number, part) for part in parts[::2]]
    return "".join(parts)


def is_iban(text: str) -> bool:
    """Length and the mod-97 check of ISO 13616."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])) % 97 == 1


def is_card_number(text: str) -> bool:
    """13 to 19 digits with a right check digit (Luhn, ISO/IEC 7812)."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_phone(number: str) -> bool:
    digits = sum(letter.isdigit() for letter in number)
    if number.startswith(("+", "00")):
        return 8 <= digits <= 15
    separators = len(re.findall(r"[ ()./-]+", number))
    return (number.lstrip("(").startswith("0") and 9 <= digits <= 12) or (digits in (10, 11) and separators >= 2)


def _without_iban(match: re.Match[str]) -> str:
    """The country says where an IBAN ends, else its check digits do; the words behind it stay."""
    found = match[0]
    places = [place for place, letter in enumerate(found) if letter.isalnum()]
    compact = "".join(found[place] for place in places)
    if sum(letter.isdigit() for letter in compact) < 8:
        return found  # mostly words
    known = _IBAN_LENGTH.get(compact[:2].upper(), 0)
    for length in (known, *range(len(compact), 14, -1)):
        if length <= len(compact) and is_iban(compact[:length]):
            return "[iban]" + found[places[length - 1] + 1 :]
    return found


def _without_number(match: re.Match[str]) -> str:
    return "[card]" if is_card_number(match[0]) else "[number]"
