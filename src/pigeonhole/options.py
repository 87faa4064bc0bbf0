"""What a command can be told: dataclass fields that know their help and their range, and `key=value` arguments read into them.

No Hydra here: commands that must do without it (batch scoring) read their arguments with `read_options`; configuration.py builds
Hydra's composition on the same fields.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar

from pigeonhole.errors import ConfigError

T = TypeVar("T")
Number = int | float


@dataclass(frozen=True)
class Allowed:
    """What a setting may be: bounds for numbers, a closed set for words."""

    ge: Number | None = None
    gt: Number | None = None
    le: Number | None = None
    lt: Number | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound}" for sign, bound in signs if bound is not None)

    def holds(self, value: object) -> bool:
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


@dataclass(frozen=True)
class Setting:
    """One key of a configuration, as `--help` and the reference show it."""

    key: str
    type: str
    default: object
    help: str
    allowed: Allowed

    @property
    def expected(self) -> str:
        return f"{self.type} {self.allowed}".rstrip()


def setting(
    default: Any,
    help: str,
    *,
    ge: Number | None = None,
    gt: Number | None = None,
    le: Number | None = None,
    lt: Number | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that knows its help and its range."""
    metadata = {"help": help, "allowed": Allowed(ge, gt, le, lt, tuple(choices))}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(schema: type[Any], prefix: str = "") -> Iterator[Setting]:
    """Every key of a schema, nested ones with dots, in order."""
    for field in dataclasses.fields(schema):
        key = prefix + field.name
        factory = field.default_factory
        if isinstance(factory, type) and is_dataclass(factory):
            yield from settings_of(factory, key + ".")
        else:
            default = factory() if callable(factory) else field.default
            yield Setting(
                key, _type_name(field.type), default, field.metadata.get("help", ""), field.metadata.get("allowed", Allowed())
            )


def read_options(schema: type[T], arguments: Sequence[str]) -> T:
    """A flat schema, filled from `key=value` arguments and checked. Raises ConfigError."""
    settings = {found.key: found for found in settings_of(schema)}
    kinds = typing.get_type_hints(schema)
    values: dict[str, object] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key not in settings:
            raise ConfigError(
                f"{argument}: there is no key {key}; {nearest(key, settings)}allowed are the keys that --help lists"
            )
        if key in values:
            raise ConfigError(f"{argument}: {key} is given twice")
        if not equals or not text:
            raise ConfigError(f"{key}: a value is missing, write {key}=VALUE ({settings[key].expected})")
        try:
            values[key] = _value(text, kinds[key])
        except ValueError as error:
            raise ConfigError(f"{argument}: expected {settings[key].expected}") from error
    options = schema(**values)
    check_ranges(options)
    return options


def split_own(schema: type[Any], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that a flat schema has a key for, and the others, which are another command's."""
    keys = {found.key for found in settings_of(schema)}
    own = [argument for argument in arguments if argument.partition("=")[0] in keys]
    return own, [argument for argument in arguments if argument not in own]


def key_lines(schema: type[Any], leave_out: Sequence[str] = ()) -> list[str]:
    """The part of `--help` that tells the keys."""
    lines = ["keys:"]
    for found in (each for each in settings_of(schema) if each.key not in leave_out):
        default = "" if found.default is None else found.default
        lines.append(f"  {found.key}={default}")
        lines.append(f"      {found.help} ({found.expected})")
    return lines


def nearest(key: str, known: Iterable[str]) -> str:
    """Of a group's keys the last part is compared: with the group's name before them any two look alike."""
    group, _, name = key.rpartition(".")
    keys = [each.rpartition(".") for each in known]
    beside = {last: f"{prefix}{dot}{last}" for prefix, dot, last in keys if prefix == group}
    elsewhere = {f"{prefix}{dot}{last}": last for prefix, dot, last in keys if group not in (prefix, last)}
    near = [beside[last] for last in difflib.get_close_matches(name, beside, n=1)]
    near = near or [each for each, last in elsewhere.items() if last == name] or difflib.get_close_matches(key, elsewhere, n=1)
    return f"did you mean {near[0]}? " if near else ""


def to_flat(config: object) -> dict[str, object]:
    """`{"trainer.epochs": 3, …}`."""
    flat: dict[str, object] = {}
    for found in settings_of(type(config)):
        value: Any = config
        for part in found.key.split("."):
            value = getattr(value, part)
        flat[found.key] = value
    return flat


def check_ranges(config: object) -> None:
    """Raises ConfigError for the first value that is out of its range."""
    values = to_flat(config)
    for found in settings_of(type(config)):
        value = values[found.key]
        items = value if isinstance(value, list) else [value]
        if not all(found.allowed.holds(item) for item in items):
            raise ConfigError(f"{found.key}={value}: expected {found.expected}")
        if any("\0" in item for item in items if isinstance(item, str)):  # YAML can write one, and no file has such a name
            raise ConfigError(f"{found.key}: holds a NUL character; expected {found.expected} without one")


def _type_name(kind: Any) -> str:
    """As a person writes it; the words of a Literal are told by what is allowed."""
    if _is_union(kind):
        return " | ".join(map(_type_name, typing.get_args(kind)))
    if typing.get_origin(kind) is typing.Literal:
        return "str"
    if kind is types.NoneType:
        return "None"
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _is_union(kind: Any) -> bool:
    """`Literal[…] | None` is a typing.Union, `str | None` is not."""
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _value(text: str, kind: Any) -> object:
    if _is_union(kind):
        if text == "null":
            return None
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is typing.Literal:
        return text  # check_ranges tells the choices
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    if kind is int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError(text)
        return int(text)
    return float(text) if kind is float else text
