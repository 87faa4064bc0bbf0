"""What the environment says, typed: dataclass fields that name their variable, read once, checked at once.

Each service has a frozen dataclass of its own made of `variable(...)` fields; its --help prints `describe` of it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pigeonhole.errors import ConfigError

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class Variable:
    """Where a setting comes from: `read` gives its value, or raises ValueError with what is allowed."""

    name: str
    help: str
    read: Callable[[str], Any]
    vertex: str = ""  # how Vertex AI names it; where that is set, it is meant


def text(value: str) -> str:
    return value


def whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(value)

    return read


def seconds(least: float, most: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or not least <= float(value) <= most:
            raise ValueError(f"seconds from {least:g} to {most:g}")
        return float(value)

    return read


def share(least: float, most: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = float("nan")
        if not least <= found <= most:
            raise ValueError(f"a number from {least:g} to {most:g}")
        return found

    return read


def one_of(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(" | ".join(choices))
        return value

    return read


def variable(
    name: str, default: Any, help: str, read: Callable[[str], Any] = text, *, secret: bool = False, vertex: str = ""
) -> Any:
    return dataclasses.field(default=default, repr=not secret, metadata={"variable": Variable(name, help, read, vertex)})


def read_variables(schema: type[SettingsT], environment: Mapping[str, str]) -> SettingsT:
    """An empty variable counts as one that is not set. Raises ConfigError naming the variable, its value and what is allowed."""
    values: dict[str, Any] = {}
    for field, found in variables(schema):
        name = found.vertex if environment.get(found.vertex) else found.name
        value = environment.get(name, "")
        if value:
            if not value.isascii():
                _require_text(name, value)
            try:
                values[field.name] = found.read(value)
            except ValueError as error:
                raise ConfigError(f"{name}={value!r}: allowed is {error}") from error
    return schema(**values)


def _require_text(name: str, value: str) -> None:
    """A secret of random bytes is not told; nothing could be made of it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name} holds bytes that are no text; allowed is UTF-8") from error


def describe_variables(schema: type[Any]) -> str:
    """One line a variable, for --help."""
    rows = [(found.name, "" if field.default is None else str(field.default), _help(found)) for field, found in variables(schema)]
    return "\n".join(f"  {name:<24}{default:<13} {help_}".rstrip() for name, default, help_ in rows)


def _help(found: Variable) -> str:
    return f"{found.help} (on Vertex AI: {found.vertex})" if found.vertex else found.help


def variables(schema: type[Any]) -> list[tuple["dataclasses.Field[Any]", Variable]]:
    return [(field, cast(Variable, field.metadata["variable"])) for field in dataclasses.fields(schema)]
