"""API keys: the list of them at a URL, and `uv run keys new | list | revoke`.

The list holds a key's sha256, never the key: that is 256 random bits, shown once. Changes are compare-and-swap.
"""

import datetime
import hashlib
import os
import re
import secrets
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from pigeonhole import storage
from pigeonhole.command import command, with_help
from pigeonhole.errors import NOT_AS_TYPED, ConfigError

Scope = Literal["predict", "feedback", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

HELP = """usage: uv run keys new [scopes=predict,feedback] [rate=10] [days=90] [keys=URL]
       uv run keys list [keys=URL]
       uv run keys revoke ID [keys=URL]

API keys of the service. keys: where the list of them is; else PIGEONHOLE_KEYS says it. A running service follows within seconds.

new     print a new key, once. scopes: of predict (and explain, model), feedback, metrics; default predict,feedback.
        rate: requests a second, default 10. days: until it ends, default 90; 0 for never.
list    print all keys, by their ids
revoke  take a key away
"""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a key. expires_at None: never."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}\Z")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    rate_per_s: Annotated[float, Meta(gt=0, le=1e6)]
    created_at: Annotated[datetime.datetime, Meta(tz=True)]
    expires_at: Annotated[datetime.datetime, Meta(tz=True)] | None


class KeyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema_version: Annotated[int, Meta(ge=1, le=1)] = 1
    keys: tuple[Key, ...] = ()


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(url: str) -> KeyList:
    """Raises ConfigError for a list that is not there or is none, StorageError where it cannot be read."""
    return _read(url)[0]


def new_key(url: str, scopes: tuple[Scope, ...], rate_per_s: float, days: int) -> tuple[str, Key]:
    """The key itself, and what the list keeps of it. Makes the list where there is none."""
    key_id = secrets.token_hex(4)
    secret = f"pgh_{key_id}_{secrets.token_urlsafe(32)}"
    now = datetime.datetime.now(datetime.UTC)
    made = Key(key_id, digest_of(secret), scopes, rate_per_s, now, now + datetime.timedelta(days=days) if days else None)
    _, token = storage.read_versioned(url)
    found = KeyList() if token == storage.ABSENT else read_keys(url)
    _replace(url, (*found.keys, made), token)
    return secret, made


def revoke_key(url: str, key_id: str) -> None:
    """Raises ConfigError for a key that is not in the list."""
    found, token = _read(url)
    left = tuple(key for key in found.keys if key.id != key_id)
    if len(left) == len(found.keys):
        raise ConfigError(f"{url}: has no key {key_id!r}; it has {', '.join(key.id for key in found.keys) or 'none'}")
    _replace(url, left, token)


def _read(url: str) -> tuple[KeyList, str]:
    data, token = storage.read_versioned(url)
    if token == storage.ABSENT:
        raise ConfigError(f"PIGEONHOLE_KEYS={url}: there is no list of keys; make one with `uv run keys new keys={url}`")
    try:
        return msgspec.json.decode(data, type=KeyList), token
    except NOT_AS_TYPED as error:
        raise ConfigError(f"PIGEONHOLE_KEYS={url}: this is no list of keys: {error}") from error


def _replace(url: str, keys: tuple[Key, ...], token: str) -> None:
    if not storage.swap(url, msgspec.json.format(msgspec.json.encode(KeyList(keys=keys)), indent=1), token):
        raise ConfigError(f"{url}: somebody else changed the list meanwhile; look again, then decide again")


@with_help(HELP)
def run(arguments: list[str]) -> dict[str, Any]:
    words = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    known = {"keys", "scopes", "rate", "days"} if words == ["new"] else {"keys"}
    if words[:1] not in (["new"], ["list"], ["revoke"]) or len(words) != 1 + (words[0] == "revoke") or options.keys() - known:
        raise ConfigError(f"cannot do {' '.join(arguments)!r}; allowed is new | list | revoke ID, see uv run keys --help")
    if len(words) + len(options) < len(arguments):
        raise ConfigError(f"{' '.join(arguments)}: an option is given twice")
    url = options.get("keys", "") or os.environ.get("PIGEONHOLE_KEYS", "")
    if not url:
        raise ConfigError("no list of keys is named; give keys=URL or set PIGEONHOLE_KEYS")
    if words == ["new"]:
        return _new(url, options)
    if words == ["list"]:
        return {"keys": [_shown(key) for key in read_keys(url).keys]}
    revoke_key(url, words[1])
    return {"revoked": words[1]}


def _new(url: str, options: dict[str, str]) -> dict[str, Any]:
    scopes = tuple(scope for scope in SCOPES if scope in options.get("scopes", "predict,feedback").split(","))
    if set(scopes) != set(options.get("scopes", "predict,feedback").split(",")):
        raise ConfigError(f"scopes={options['scopes']!r}: allowed are {', '.join(SCOPES)}, with commas between them")
    secret, made = new_key(url, scopes, float(_number(options, "rate", "10")), int(_number(options, "days", "90")))
    return {"key": secret, **_shown(made)}


def _number(options: dict[str, str], name: str, default: str) -> str:
    value = options.get(name, default)
    if not re.fullmatch(r"[0-9]{1,5}", value) or (name == "rate" and int(value) == 0):
        raise ConfigError(f"{name}={value!r}: allowed is a whole number from {1 if name == 'rate' else 0} to 99999")
    return value


def _shown(key: Key) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(key).items() if name != "sha256"}


main = command(run)

if __name__ == "__main__":
    main()
