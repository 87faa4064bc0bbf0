"""Who may ask what, and how often: API keys with scopes, a rate and an end, or ID tokens. Without either the service is open,
to all or to this machine alone.

All keys are compared with the one that came, in constant time; what is wrong with a key that is refused is not told.
"""

import datetime
import hmac
import logging
import math
import time
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers
from starlette.requests import Request

from pigeonhole.errors import PigeonholeError
from pigeonhole.port import is_own_name
from pigeonhole.serving.keys import Key, Scope, digest_of, read_keys
from pigeonhole.serving.problem import Problem
from pigeonhole.serving.routing import Check

MAX_KEY_CHARS = 200
MAX_TOKEN_CHARS = 8192

logger = logging.getLogger(__name__)


class _Bucket:
    """Holds a second's worth of requests, at least one, and is filled at the rate of its key."""

    def __init__(self, now: float) -> None:
        self.requests = math.inf
        self._at = now

    def take(self, rate_per_s: float, now: float) -> float:
        """Seconds to wait; 0 where there was one to take."""
        self.requests = min(max(1.0, rate_per_s), self.requests + (now - self._at) * rate_per_s)
        self._at = now
        if self.requests < 1:
            return (1 - self.requests) / rate_per_s
        self.requests -= 1
        return 0.0


class UnknownCaller(Exception):  # noqa: N818  a refusal, which `admit` words
    """A token names nobody who is let in."""


class Identity(Protocol):
    """identity.py has it; what it needs is loaded only where ID tokens are asked for."""

    scopes: tuple[Scope, ...]
    rate_per_s: float

    def verify(self, token: str) -> str:
        """Who it is. Raises UnknownCaller."""


@dataclass(frozen=True)
class _Person:
    """Somebody, or some service, with an ID token."""

    id: str
    scopes: tuple[Scope, ...]
    rate_per_s: float


class Access:
    """Asked on the event loop; `look` may run anywhere."""

    def __init__(self, url: str | None, share: int = 1, identity: Identity | None = None, private: bool = False) -> None:
        """Raises ConfigError, StorageError for a list that cannot be read. `share`: how many processes share a key's rate.

        `private`: without keys and tokens it is open to this machine alone.
        """
        self._identity = identity
        self._url = url
        self._share = share
        self._is_private = private and url is None and identity is None
        self._keys = read_keys(url).keys if url else ()
        self._unreadable = False
        self._buckets: dict[str, _Bucket] = {}

    def look(self) -> None:
        """Read the list again. While it cannot be read, the one that is known holds."""
        assert self._url is not None  # an open service has nothing to look at
        try:
            self._keys = read_keys(self._url).keys
        except PigeonholeError as error:
            if not self._unreadable:  # once, not at each look
                logger.warning("the list of keys cannot be read, the known one holds: %s", error)
            self._unreadable = True
        else:
            self._unreadable = False

    @property
    def is_open(self) -> bool:
        """Whether everybody may ask everything."""
        return self._url is None and self._identity is None and not self._is_private

    def needs(self, scope: Scope) -> Check:
        """A route's check: its requests are admitted before their bodies are read."""

        async def check(request: Request) -> None:
            self.admit(request.headers, scope)

        return check

    def admit(self, headers: Headers, scope: Scope) -> None:
        """Raises Problem: 401 without a key that holds, 403 without the scope or from another site, 429 above the rate."""
        if self.is_open:
            return
        caller = self._caller(headers, scope)
        if caller is None:
            return
        now = time.monotonic()
        wait_s = self._buckets.setdefault(caller.id, _Bucket(now)).take(caller.rate_per_s / self._share, now)
        if wait_s > 0:
            limit = f"at most {caller.rate_per_s:g} requests a second with this key"
            raise Problem(429, "rate_limited", limit, {"retry-after": str(math.ceil(wait_s))})

    def knows(self, headers: Headers, scope: Scope) -> bool:
        """Whether `admit` would let them in but for their rate, which this leaves as it is."""
        try:
            self._caller(headers, scope)
        except Problem:
            return False
        return True

    def _caller(self, headers: Headers, scope: Scope) -> "Key | _Person | None":
        """None: somebody on this machine."""
        if self._is_private:
            _check_host(headers.get("host", ""))
            return None
        caller = self._named(_given(headers))
        if scope not in caller.scopes:
            raise Problem(403, "missing_scope", f"this key has not the scope {scope}")
        return caller

    def _named(self, given: str) -> "Key | _Person":
        if self._identity is None or given.count(".") != 2:  # an API key has no dots, an ID token two
            return self._key(given)
        try:
            subject = self._identity.verify(given)
        except UnknownCaller as error:
            raise _unknown("invalid_token", "this token is not for this service, or does not hold any more") from error
        return _Person(f"subject {subject}", self._identity.scopes, self._identity.rate_per_s)

    def _key(self, given: str) -> Key:
        digest = digest_of(given)
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        now = datetime.datetime.now(datetime.UTC)
        if not found or (found[0].expires_at is not None and found[0].expires_at <= now):
            raise _unknown("invalid_key", "this key is not known, or does not hold any more")
        return found[0]


def caller_of(headers: Headers) -> str:
    """Tells callers apart, without keeping their keys."""
    return digest_of(" ".join([*headers.getlist("x-api-key"), *headers.getlist("authorization")]))


def _check_host(host: str) -> None:
    if not is_own_name(host):
        detail = "open to this machine alone, and host is a name of the internet; use localhost or set PIGEONHOLE_PUBLIC=true"
        raise Problem(403, "foreign_host", detail)


def _given(headers: Headers) -> str:
    keys, credentials = headers.getlist("x-api-key"), headers.getlist("authorization")
    if not keys and not credentials:
        raise _unknown("missing_key", "send an API key, as `authorization: Bearer KEY` or as `x-api-key: KEY`")
    if len(keys) + len(credentials) > 1:
        raise _unknown("invalid_key", "send one key, in one header")
    scheme, _, value = credentials[0].partition(" ") if credentials else ("bearer", "", keys[0])
    if scheme.lower() != "bearer" or len(value) > (MAX_TOKEN_CHARS if credentials else MAX_KEY_CHARS):
        raise _unknown("invalid_key", "a key is sent as `authorization: Bearer KEY` or as `x-api-key: KEY`")
    return value


def _unknown(code: str, detail: str) -> Problem:
    return Problem(401, code, detail, {"www-authenticate": "Bearer"})
