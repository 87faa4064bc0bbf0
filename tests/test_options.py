from dataclasses import dataclass
from typing import Literal

import pytest

from pigeonhole.errors import ConfigError
from pigeonhole.options import key_lines, read_options, setting


@dataclass(frozen=True)
class Oven:
    name: str = setting("old", "what it is called")
    door: str | None = setting(None, "colour of the door")
    degrees: int = setting(180, "heat", ge=50, le=250)
    share: float = setting(0.5, "of the tray", ge=0, lt=1)
    fan: bool = setting(False, "blow")
    light: Literal["on", "off"] = setting("on", "lamp", choices=("on", "off"))
    grill: Literal["top", "both"] | None = setting(None, "heat from", choices=("top", "both"))


def test_arguments_fill_the_fields_by_their_types() -> None:
    arguments = ["name=a=b c", "door=null", "degrees=+200", "share=1e-3", "fan=true", "light=off"]
    assert read_options(Oven, arguments) == Oven("a=b c", None, 200, 0.001, True, "off")
    assert read_options(Oven, ["door=red"]).door == "red"
    assert [read_options(Oven, [f"grill={word}"]).grill for word in ("both", "null")] == ["both", None]
    assert read_options(Oven, []) == Oven()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("degree=3", "degree=3: there is no key degree; did you mean degrees? allowed are the keys that --help lists"),
        ("degrees", "degrees: a value is missing, write degrees=VALUE (int >= 50 and <= 250)"),
        ("degrees=", "degrees: a value is missing, write degrees=VALUE (int >= 50 and <= 250)"),
        ("degrees=1e2", "degrees=1e2: expected int >= 50 and <= 250"),
        ("degrees=300", "degrees=300: expected int >= 50 and <= 250"),
        ("share=nan", "share=nan: expected float >= 0 and < 1"),
        ("fan=yes", "fan=yes: expected bool"),
        ("name=a\0b", "name: holds a NUL character; expected str without one"),
        ("light=dim", "light=dim: expected str one of on, off"),
    ],
)
def test_a_wrong_argument_is_told_with_what_is_allowed(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(Oven, [argument])
    assert str(caught.value) == message


def test_both_ends_of_a_range_are_in_it_and_a_long_number_is_read() -> None:
    assert [read_options(Oven, [f"degrees={end}"]).degrees for end in (50, 250)] == [50, 250]
    assert read_options(Oven, ["share=0"]).share == 0
    with pytest.raises(ConfigError, match=r"share=1\.0: expected float >= 0 and < 1"):
        read_options(Oven, ["share=1"])
    with pytest.raises(ConfigError, match="degrees=123456789: expected int >= 50 and <= 250"):
        read_options(Oven, ["degrees=123456789"])


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="degrees=200: degrees is given twice"):
        read_options(Oven, ["degrees=100", "degrees=200"])


def test_help_tells_every_key_with_default_and_range() -> None:
    lines = key_lines(Oven)
    assert "  degrees=180" in lines
    assert "      heat (int >= 50 and <= 250)" in lines


def test_help_tells_words_to_choose_from_without_pythons_own() -> None:
    assert "      heat from (str | None one of top, both)" in key_lines(Oven)


def test_help_leaves_out_what_is_not_for_this_command() -> None:
    told = key_lines(Oven, leave_out=["fan", "light"])
    assert not {"  fan=False", "      blow (bool)", "  light=on"} & set(told)
    assert "  degrees=180" in told
