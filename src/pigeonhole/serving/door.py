"""The door: while too much waits, a question is refused from its first bytes, before anything is parsed or built.

Refusing must cost far less than answering: at four times the capacity three of four questions are refused, and what that takes is
taken from the answers. What is not a whole, plain request in one piece takes the long way, and is refused there.
"""

import re
from collections.abc import Callable

from pigeonhole.serving.problem import MEDIA_TYPE, OVERLOADED_CODE, later

QUESTIONS = (b"POST /predict HTTP/1.1\r\n", b"POST /v1/predict HTTP/1.1\r\n")


class Door:
    """Shared by all connections; `is_full` is asked for each piece of a request that comes in."""

    def __init__(self, is_full: Callable[[], bool], count: Callable[[], None]) -> None:
        """`count` is told of each refusal."""
        self.is_ending = False  # the service goes down: an answer is the last one of its connection
        self._is_full = is_full
        self._count = count
        body = later(OVERLOADED_CODE, "too many texts are waiting").body()
        head = (
            f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            "retry-after: 1\r\nx-content-type-options: nosniff\r\n\r\n"
        )
        self._answer = head.encode() + body

    @property
    def is_shut(self) -> bool:
        """Whether no question is let in."""
        return not self.is_ending and self._is_full()

    def refuse(self) -> bytes:
        """The whole answer to a question that is not let in."""
        self._count()
        return self._answer


def is_question(data: bytes) -> bool:
    """Whether this is one question with its whole body and nothing after it, whose length nobody could read in another way."""
    if not data.startswith(QUESTIONS):
        return False
    end = data.find(b"\r\n\r\n")
    head = data[:end].lower()
    lengths = re.findall(rb"\r\ncontent-length: ?([0-9]{1,7})(?=\r\n|$)", head)
    if end < 0 or len(lengths) != 1 or b"transfer-encoding" in head or b"\nexpect:" in head or b"\nconnection:" in head:
        return False
    return head.count(b"content-length") == 1 and len(data) == end + 4 + int(lengths[0])
