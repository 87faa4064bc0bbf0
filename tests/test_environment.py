import os
from dataclasses import dataclass

import pytest

from pigeonhole.environment import describe_variables, one_of, read_variables, seconds, share, variable, whole_number
from pigeonhole.errors import ConfigError


@dataclass(frozen=True)
class Kettle:
    name: str = variable("KETTLE_NAME", "kettle", "what it is called")
    cups: int = variable("KETTLE_CUPS", 4, "how many it holds", whole_number(1, 12))
    wait_s: float = variable("KETTLE_WAIT_S", 1.5, "patience", seconds(0.5, 60))
    colour: str = variable("KETTLE_COLOUR", "red", "red or blue", one_of("red", "blue"))
    full: float = variable("KETTLE_FULL", 0.5, "how much of it", share(0, 1), vertex="AIP_FULL")
    key: str = variable("KETTLE_KEY", "", "the key of its lock", secret=True)


def test_defaults_hold_where_a_variable_is_not_set_or_empty() -> None:
    assert read_variables(Kettle, {"KETTLE_CUPS": "", "OTHER": "1"}) == Kettle()


def test_values_are_read_by_their_type() -> None:
    found = read_variables(Kettle, {"KETTLE_CUPS": "6", "KETTLE_WAIT_S": "2.25", "KETTLE_COLOUR": "blue"})
    assert (found.cups, found.wait_s, found.colour) == (6, 2.25, "blue")


def test_both_ends_of_a_range_are_allowed() -> None:
    low, high = (
        read_variables(Kettle, {"KETTLE_CUPS": cups, "KETTLE_WAIT_S": wait, "KETTLE_FULL": full})
        for cups, wait, full in (("1", "0.5", "0"), ("12", "60", "1"))
    )
    assert (low.cups, low.wait_s, low.full) == (1, 0.5, 0)
    assert (high.cups, high.wait_s, high.full) == (12, 60, 1)


def test_what_vertex_ai_sets_is_meant_where_both_are_set() -> None:
    assert read_variables(Kettle, {"KETTLE_FULL": "0.1", "AIP_FULL": "0.2"}).full == 0.2
    assert read_variables(Kettle, {"KETTLE_FULL": "0.1", "AIP_FULL": ""}).full == 0.1
    assert "how much of it (on Vertex AI: AIP_FULL)" in describe_variables(Kettle)
    with pytest.raises(ConfigError, match=r"^AIP_FULL='2': allowed is a number from 0 to 1"):
        read_variables(Kettle, {"AIP_FULL": "2"})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("KETTLE_CUPS", "13", "a whole number from 1 to 12"),
        ("KETTLE_CUPS", "1e1", "a whole number from 1 to 12"),
        ("KETTLE_CUPS", "0", "a whole number from 1 to 12"),
        ("KETTLE_FULL", "1.01", "a number from 0 to 1"),
        ("KETTLE_FULL", "nan", "a number from 0 to 1"),
        ("KETTLE_FULL", "half", "a number from 0 to 1"),
        ("KETTLE_WAIT_S", "60.1", "seconds from 0.5 to 60"),
        ("KETTLE_WAIT_S", "nan", "seconds from 0.5 to 60"),
        ("KETTLE_COLOUR", "green", r"red \| blue"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}='{value}': allowed is {allowed}"):
        read_variables(Kettle, {name: value})


@pytest.mark.parametrize("name", ["KETTLE_NAME", "KETTLE_CUPS", "KETTLE_KEY"])
def test_bytes_that_are_no_text_are_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} holds bytes that are no text; allowed is UTF-8$"):
        read_variables(Kettle, {name: os.fsdecode(b"\xffhunter2")})


def test_the_table_names_each_variable_and_a_secret_is_not_shown() -> None:
    assert [line.split()[0] for line in describe_variables(Kettle).splitlines()] == [
        "KETTLE_NAME",
        "KETTLE_CUPS",
        "KETTLE_WAIT_S",
        "KETTLE_COLOUR",
        "KETTLE_FULL",
        "KETTLE_KEY",
    ]
    assert "hunter2" not in repr(read_variables(Kettle, {"KETTLE_KEY": "hunter2"}))
