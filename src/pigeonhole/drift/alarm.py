"""An alarm leaves the house: a signed HTTP POST, or a message on a Pub/Sub topic, sent again while the other side cannot take it.

Promises: what `deliver` calls sent was acknowledged by the receiver; a receiver that was slow to say so may have it twice, and
knows it by `id`. It never raises: an alarm that cannot be delivered is still in the report, and the reason is in what it returns.
"""

import base64
import hashlib
import hmac
import http.client
import json
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

import msgspec

SIGNATURE = "X-Pigeonhole-Signature"
TOLERANCE_S = 300  # a signature older than this may be a recording
WAITS_S = (0.0, 0.5, 2.0, 8.0)  # before each attempt; a run waits for its alarm, so together they stay under a minute
TIMEOUT_S = 5.0
PUBSUB = "https://pubsub.googleapis.com"
METADATA = "http://metadata.google.internal"


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent: which version is concerned, and which report says why."""

    schema_version: int = 1
    id: str
    at: str
    model: str
    version: str
    report: int
    detectors: list[str]
    rows: int


@dataclass(frozen=True)
class Delivery:
    sent: bool
    attempts: int
    why_not: str | None = None


@dataclass(frozen=True)
class Sender:
    """Where alarms go: `url` is http(s)://… or pubsub://projects/PROJECT/topics/TOPIC; `secret` signs what a webhook gets."""

    url: str
    secret: str = ""
    waits_s: Sequence[float] = WAITS_S
    pubsub: str = PUBSUB
    metadata: str = METADATA
    sleep: Callable[[float], None] = time.sleep

    def deliver(self, alarm: Alarm) -> Delivery:
        body = msgspec.json.encode(alarm)
        why = ""
        for attempt, wait_s in enumerate(self.waits_s, 1):
            self.sleep(wait_s)
            try:
                _within(TIMEOUT_S, lambda: self._send(body))
            except urllib.error.HTTPError as error:
                error.close()
                why = f"the receiver answered {error.code}"
                if error.code < 500 and error.code not in (408, 425, 429):
                    return Delivery(False, attempt, why)
            except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:  # the token's answer, too
                why = f"the receiver cannot be reached ({getattr(error, 'reason', error)})"
            else:
                return Delivery(True, attempt)
        return Delivery(False, len(self.waits_s), why)

    def _send(self, body: bytes) -> None:
        topic = self.url.removeprefix("pubsub://")
        if topic == self.url:
            _post(self.url, body, {SIGNATURE: sign(self.secret, body, int(time.time()))} if self.secret else {})
        else:
            message = {"messages": [{"data": base64.b64encode(body).decode()}]}
            _post(f"{self.pubsub}/v1/{topic}:publish", json.dumps(message).encode(), {"Authorization": f"Bearer {self._token()}"})

    def _token(self) -> str:
        """Of the account that this service runs as; it needs roles/pubsub.publisher on the topic."""
        url = f"{self.metadata}/computeMetadata/v1/instance/service-accounts/default/token"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})  # noqa: S310  the address above
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return str(json.load(answer)["access_token"])


def alarm_url(value: str) -> str:
    """For settings. Raises ValueError with what is allowed."""
    if not re.fullmatch(r"https?://[^\s/]+\S*|pubsub://projects/[a-z][a-z0-9-]+/topics/[A-Za-z][\w.~+%-]{2,254}", value):
        raise ValueError("http://…, https://… or pubsub://projects/PROJECT/topics/TOPIC")
    return value


def sign(secret: str, body: bytes, at: int) -> str:
    """`t=SECONDS,v1=HEX`: HMAC-SHA256 over the time and the body, so that neither can be changed nor sent again later."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def is_signed(secret: str, body: bytes, signature: str, now: float) -> bool:
    found = re.fullmatch(r"t=([0-9]{1,12}),v1=[0-9a-f]{64}", signature)
    if not found or abs(now - int(found[1])) > TOLERANCE_S:
        return False
    return hmac.compare_digest(sign(secret, body, int(found[1])), signature)


def _within(seconds: float, work: Callable[[], None]) -> None:
    """A socket's own timeout begins anew with each byte, and a run waits for its alarm.

    Raises TimeoutError, and what the work does.
    """
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  it is raised again, in the thread that waits
            ended.put(error)
        else:
            ended.put(None)

    threading.Thread(target=run, name="alarm", daemon=True).start()
    try:
        error = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None
    try:
        if error is not None:
            raise error
    finally:
        del error  # it holds this frame, and its sockets stay open until neither holds the other


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body, and count as sent."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _post(url: str, body: bytes, headers: dict[str, str]) -> None:
    """Raises HTTPError for any answer but a 2xx, OSError where there is none."""
    sent: dict[str, Any] = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, body, sent, method="POST")  # noqa: S310  what the settings allow
    with _OPENER.open(request, timeout=TIMEOUT_S):
        pass
