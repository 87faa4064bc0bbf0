"""Strings that look like personal data, by kind. Counted, never shown."""

import re
from collections.abc import Iterator

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_NUMBER = re.compile(r"(?<![\w.])(?:\+|\()?\d(?:[ ()./-]{0,2}\d){6,18}(?![\w])")
_SEVEN_DIGITS = re.compile(r"\d(?:[ ()./-]{0,2}\d){6}")


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
