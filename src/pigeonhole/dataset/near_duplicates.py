"""Texts that share most of their letters in order, found among millions: MinHash over character 5-grams, 128 bytes a text.

A sketch holds 64 minima; the share of equal ones estimates the Jaccard similarity of the 5-gram sets (Broder 1997). One hash per
gram fills them all (Li, Owen, Zhang 2012), and an empty one borrows from its right neighbour (Shrivastava, Li 2014). Texts that
agree in one of 21 bands of 3 minima are compared.

Measured against the exact similarity on banking77 and clinc150 (10,000 and 15,000 texts): no bias, standard deviation 0.08. Of
the texts that have another one at 0.5 or more, 91 % and 92 % are found, at 0.7 or more 99.9 %; of those found, 80 % and 83 % have
one.
"""

import functools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRAM = 5
SLOTS = 64
BANDS, BAND_SLOTS = 21, 3
THRESHOLD = 0.5
COMPARED_NEIGHBOURS = 3  # in a band with many texts, each meets the next three
_EMPTY = np.uint32(0xFFFFFFFF)
_PAIRS_AT_ONCE = 1 << 16


class Sketches:
    """Grows by batches; 16 bits of each minimum are kept."""

    def __init__(self) -> None:
        self._slots = array("H")

    def add(self, texts: Sequence[str]) -> None:
        """Normalised texts, a few thousand at once."""
        self._slots.frombytes(sketch(texts).tobytes())

    def table(self) -> NDArray[np.uint16]:
        """Shape (n, 64)."""
        return np.frombuffer(self._slots, np.uint16).reshape(-1, SLOTS)


@dataclass(frozen=True)
class NearDuplicates:
    rows: NDArray[np.bool_]  # (n,) has a near-duplicate
    across: NDArray[np.bool_]  # (n,) has one on another side


def sketch(texts: Sequence[str]) -> NDArray[np.uint16]:
    """Shape (n, 64)."""
    padded = [text.ljust(GRAM) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    ends = np.cumsum(lengths)
    row = np.repeat(np.arange(len(padded)), lengths)
    hashed = np.zeros(max(len(codes) - GRAM + 1, 0), np.uint64)
    for place in range(GRAM):
        hashed = hashed * np.uint64(0x100000001B3) + codes[place : place + len(hashed)]
    whole = np.arange(len(hashed)) + GRAM <= ends[row[: len(hashed)]]  # a gram does not reach into the next text
    hashed, row = _mixed(hashed[whole]), row[: len(hashed)][whole]
    slots = np.full(len(padded) * SLOTS, _EMPTY)
    np.minimum.at(
        slots, row * SLOTS + (hashed >> np.uint64(58)).astype(np.int64), (hashed & np.uint64(0x7FFFFFFF)).astype(np.uint32)
    )
    return (_filled(slots.reshape(-1, SLOTS)) & np.uint32(0xFFFF)).astype(np.uint16)


def find_near_duplicates(table: NDArray[np.uint16], sides: NDArray[np.int8], among: NDArray[np.int64]) -> NearDuplicates:
    """`table` (n, 64), `sides` (n,), `among` (m,) the rows to compare: leave repeated texts out, they are near each other.

    Which rows have a near-duplicate, anywhere and on another side.
    """
    found = NearDuplicates(np.zeros(len(table), bool), np.zeros(len(table), bool))
    for band in range(BANDS):
        slots = (table[among, slot].astype(np.uint64) for slot in range(band * BAND_SLOTS, (band + 1) * BAND_SLOTS))
        key = functools.reduce(lambda high, low: (high << np.uint64(16)) | low, slots)
        order = np.argsort(key, kind="stable")
        key, order = key[order], among[order]
        for step in range(1, COMPARED_NEIGHBOURS + 1):
            same = np.flatnonzero(key[step:] == key[:-step])
            for begin in range(0, len(same), _PAIRS_AT_ONCE):
                places = same[begin : begin + _PAIRS_AT_ONCE]
                _compare(table, sides, order[places], order[places + step], found)
    return found


def _compare(
    table: NDArray[np.uint16], sides: NDArray[np.int8], one: NDArray[np.int64], other: NDArray[np.int64], found: NearDuplicates
) -> None:
    near = (table[one] == table[other]).mean(axis=1) >= THRESHOLD
    apart = near & (sides[one] != sides[other])
    for rows in (one, other):
        found.rows[rows[near]] = True
        found.across[rows[apart]] = True


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _filled(slots: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Let an empty slot take its right neighbour's value, changed by the distance, until none is empty."""
    slots = slots.copy()
    while (empty := slots == _EMPTY).any():
        borrowed = np.roll(slots, -1, axis=1)
        slots = np.where(
            empty & (borrowed != _EMPTY), (borrowed * np.uint32(2654435761) + np.uint32(1)) & np.uint32(0x7FFFFFFF), slots
        )
    return slots
