"""Whom a request asks, and for what, as a checked struct; a refusal names field and limit, and never repeats what was sent."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pigeonhole.errors import NOT_AS_TYPED, ConfigError
from pigeonhole.port import is_own_name

Asked = TypeVar("Asked")


def check_host(request: Request) -> None:
    """For a service that this machine alone reaches. Raises HTTPException (port.py says why)."""
    if not is_own_name(request.headers.get("host", "")):
        raise HTTPException(403, "open to this machine alone, and host is a name of the internet; use localhost")


def read_query(query: Sequence[tuple[str, str]], shape: type[Asked], allowed: str) -> Asked:
    """Raises ConfigError; `allowed` is what it says may stand there."""
    fields = dict(query)
    if len(fields) < len(query):
        raise ConfigError(f"the query: a field stands there more than once; allowed are {allowed}")
    try:
        return msgspec.convert(fields, shape, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the query: {_said(error)}; allowed are {allowed}") from error


def read_body(body: bytes, shape: type[Asked], allowed: str) -> Asked:
    """Nothing at all is what `{}` is. Raises ConfigError."""
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=shape)
    except NOT_AS_TYPED as error:
        raise ConfigError(f"the body: {_said(error)}; allowed is {allowed}") from error


def _said(error: Exception) -> str:
    said = str(error)
    if "unknown field" in said:
        return "there is an unknown field"
    if said.startswith("Invalid enum value"):
        return "a value is none of those that are allowed"
    return said.replace("$.", "")
