"""ID tokens of OpenID Connect, Google's among them: who asks, by a token that an issuer signed for this service.

The issuer's keys are read at the start and by a poller, never while a request waits: a token with a key that nobody knows is
refused, and the next look reads the keys again. What is wrong with a token that is refused is not told.
"""

import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
from typing import Any

import jwt

from pigeonhole.errors import ConfigError
from pigeonhole.serving.access import UnknownCaller
from pigeonhole.serving.keys import Scope

ALGORITHMS = ["RS256", "ES256"]  # by name: what a token says of itself decides nothing else
REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
LEEWAY_S = 30
FRESH_S = 300.0
TIMEOUT_S = 5.0
SAFE = re.compile(r"https://|http://(127\.0\.0\.1|localhost):[^/?#@]*(?:[/?#]|\Z)")  # no user before another host
SAFE_ALONE = "an issuer and its keys are read over https:// alone"

logger = logging.getLogger(__name__)


class Identity:
    """Tokens of one issuer for one audience. `verify` runs on the event loop, `look` anywhere."""

    def __init__(self, issuer: str, audience: str, allowed: str, scopes: tuple[Scope, ...], rate_per_s: float) -> None:
        """`allowed`: e-mail addresses, subjects or *@domain, with commas. Raises ConfigError where the issuer cannot be read."""
        self.scopes = scopes
        self.rate_per_s = rate_per_s
        self._issuer = issuer.rstrip("/")
        self._audience = audience
        self._allowed = frozenset(name.strip() for name in allowed.split(",") if name.strip())
        self._unknown_key_seen = False
        self._keys_url = self._read(f"{self._issuer}/.well-known/openid-configuration").get("jwks_uri")
        if not isinstance(self._keys_url, str):
            raise ConfigError(f"PIGEONHOLE_OIDC_ISSUER={issuer}: its openid-configuration names no jwks_uri")
        self._keys = self._read_keys()
        self._read_at = time.monotonic()

    def look(self) -> None:
        """Read the keys again where they are old, or where somebody came with another one. Keys that are known hold till then."""
        if not self._unknown_key_seen and time.monotonic() - self._read_at < FRESH_S:
            return
        try:
            self._keys = self._read_keys()
        except ConfigError as error:
            logger.warning("the known keys hold: %s", error)
        self._unknown_key_seen, self._read_at = False, time.monotonic()

    def verify(self, token: str) -> str:
        """The caller's subject. Raises UnknownCaller."""
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.get(header["kid"])
            if key is None:
                self._unknown_key_seen = True
                raise UnknownCaller
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                # Google writes its name with and without the scheme, Auth0 its own with a slash at the end.
                issuer=[self._issuer, f"{self._issuer}/", self._issuer.removeprefix("https://")],
                leeway=LEEWAY_S,
                options={"require": REQUIRED},
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise UnknownCaller from error
        if not self._is_allowed(claims):
            raise UnknownCaller
        return str(claims["sub"])

    def _is_allowed(self, claims: dict[str, Any]) -> bool:
        email = claims.get("email") if claims.get("email_verified") is True else None
        names: set[str] = set()
        if not claims["sub"].startswith("*@"):  # a subject is no pattern, whatever it looks like
            names.add(claims["sub"])
        if isinstance(email, str) and email.count("@") == 1:
            names |= {email, f"*@{email.partition('@')[2]}"}
        return bool(names & self._allowed)

    def _read_keys(self) -> dict[str, jwt.PyJWK]:
        found: dict[str, jwt.PyJWK] = {}
        entries = self._read(str(self._keys_url)).get("keys")
        for entry in entries if isinstance(entries, list) else []:
            try:
                key = jwt.PyJWK(entry)
            except (jwt.PyJWTError, AttributeError, TypeError, ValueError) as error:  # AttributeError: an entry that is no object
                logger.warning("%s: a key is passed over: %s", self._keys_url, type(error).__name__)
                continue
            if key.key_id and key.algorithm_name in ALGORITHMS and entry.get("use", "sig") == "sig":
                found[key.key_id] = key
        if not found:
            raise ConfigError(f"{self._keys_url}: has no key for {' or '.join(ALGORITHMS)}")
        return found

    def _read(self, url: str) -> dict[str, Any]:
        if not SAFE.match(url):
            raise ConfigError(f"{url}: {SAFE_ALONE}")
        try:
            with urllib.request.build_opener(_SafeRedirects).open(url, timeout=TIMEOUT_S) as answer:
                found = json.loads(answer.read(1 << 20))
        except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise ConfigError(f"{url}: the issuer cannot be read ({error}); is PIGEONHOLE_OIDC_ISSUER right?") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{url}: this is no JSON object")
        return found


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """urllib's own follows https:// to http:// too, where anybody on the way could put in keys."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not SAFE.match(newurl):
            raise urllib.error.URLError(f"it leads to {newurl}; {SAFE_ALONE}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
