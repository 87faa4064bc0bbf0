"""Who the page is, for services on Cloud Run that answer nobody else: a token of the account that the page runs as.

It travels in a header of its own, beside the API key of the service itself.
"""

import time
from collections.abc import Generator

import httpx

METADATA = "http://metadata.google.internal"
GOOD_FOR_S = 3000.0  # Google's are good for an hour


class Identity(httpx.Auth):
    """Fetches the token for one address from the machine that it runs on, and again before it ends."""

    requires_response_body = True

    def __init__(self, audience: str, metadata: str = METADATA) -> None:
        self._asked = f"{metadata}/computeMetadata/v1/instance/service-accounts/default/identity"
        self._audience = audience
        self._token = ""
        self._until = 0.0

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if time.monotonic() >= self._until:
            ask = httpx.Request("GET", self._asked, params={"audience": self._audience}, headers={"metadata-flavor": "Google"})
            answer = yield ask
            if answer.is_success:
                self._token, self._until = answer.text, time.monotonic() + GOOD_FOR_S
        if self._token:
            request.headers["x-serverless-authorization"] = f"Bearer {self._token}"
        yield request


def identity_for(url: str) -> Identity | None:
    """None for an address that is not Cloud Run's own."""
    return Identity(url) if is_cloud_run(httpx.URL(url)) else None


def is_cloud_run(url: httpx.URL) -> bool:
    return url.host.endswith(".run.app")
