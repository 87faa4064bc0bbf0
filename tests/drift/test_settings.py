import pytest

from pigeonhole.drift.settings import Settings
from pigeonhole.environment import read_variables
from pigeonhole.errors import ConfigError


def test_an_empty_environment_gives_the_defaults() -> None:
    assert read_variables(Settings, {}) == Settings()


def test_values_come_from_their_variables() -> None:
    found = read_variables(Settings, {"PORT": "9000", "PIGEONHOLE_ALARM_BUDGET": "0.05", "PIGEONHOLE_DRAW": "no"})
    assert (found.port, found.budget, found.draw) == (9000, 0.05, "no")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PIGEONHOLE_ALARM_BUDGET", "0", "a number from 0.002 to 0.5"),
        ("PIGEONHOLE_ALARM_BUDGET", "nan", "a number from 0.002 to 0.5"),
        ("PIGEONHOLE_ALARM_BUDGET", "one percent", "a number from 0.002 to 0.5"),
        ("PIGEONHOLE_DRAW", "maybe", r"yes \| no"),
        ("PIGEONHOLE_MIN_ROWS", "1", "a whole number from 2 to 10000"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}='{value}': allowed is {allowed}"):
        read_variables(Settings, {name: value})
