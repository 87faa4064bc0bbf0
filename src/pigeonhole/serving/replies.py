"""Idempotency: a reply by its key, so that a request that is sent twice is answered once. In memory, of this process alone."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from pigeonhole.serving.problem import LATE_CODE, Problem, later, too_late

KEEP_S = 600.0
MAX_BYTES = 16 << 20
OVERHEAD_BYTES = 512  # of an entry, whatever its reply is


class Reply(NamedTuple):
    """The body of an answer, and how safe its records are: who asks again is told of those, and not of today's."""

    body: bytes
    level: str = ""


@dataclass(eq=False)
class _Kept:
    fingerprint: bytes
    reply: "asyncio.Future[Reply]"
    until: float  # time.monotonic()
    size_bytes: int = OVERHEAD_BYTES


class _FirstWasLateError(Exception):
    """By a deadline of its own, which says nothing of those who wait for its reply."""


class Replies:
    """The replies of the last ten minutes, the latest 16 MiB of them. Belongs to one event loop."""

    def __init__(self, keep_s: float = KEEP_S, max_bytes: int = MAX_BYTES) -> None:
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._size_bytes = 0

    async def once(self, key: str, fingerprint: bytes, make: Callable[[], Awaitable[Reply]], until: float = math.inf) -> Reply:
        """The reply of the first request with this key, while it is kept; a failure is not kept.

        It is waited for until `until` (time.monotonic()); where its own deadline comes before that, this request is the first.

        Raises Problem where the key came with another request, and what `make` raises.
        """
        while True:
            try:
                return await self._once(key, fingerprint, make, until)
            except _FirstWasLateError as error:
                if time.monotonic() >= until:
                    raise too_late() from error

    async def _once(self, key: str, fingerprint: bytes, make: Callable[[], Awaitable[Reply]], until: float) -> Reply:
        self._forget()
        found = self._kept.get(key)
        if found is None:
            return await self._make(key, fingerprint, make)
        if found.fingerprint != fingerprint:
            raise Problem(422, "idempotency_key_reused", "this idempotency-key came with another request before")
        left_s = None if until == math.inf else max(0.0, until - time.monotonic())
        done, _ = await asyncio.wait({found.reply}, timeout=left_s)  # whoever goes leaves the reply to the others
        if not done:
            raise too_late()
        try:
            return found.reply.result()
        except Problem as problem:
            if problem.code == LATE_CODE:
                raise _FirstWasLateError from problem
            raise

    async def _make(self, key: str, fingerprint: bytes, make: Callable[[], Awaitable[Reply]]) -> Reply:
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        entry = self._kept[key] = _Kept(fingerprint, reply, time.monotonic() + self._keep_s)
        self._size_bytes += entry.size_bytes
        try:
            made = await make()
        except BaseException as error:
            self._remove(key)
            cut_off = later("cut_off", "the first request with this idempotency-key was cut off")
            reply.set_exception(error if isinstance(error, Exception) else cut_off)
            reply.exception()  # nobody may be waiting for it
            raise
        entry.size_bytes += len(made.body)
        self._size_bytes += len(made.body)
        reply.set_result(made)
        self._forget()
        return made

    def _forget(self) -> None:
        """The outdated, then the oldest that are too many; never those that are still being made."""
        gone, size_bytes, now = [], self._size_bytes, time.monotonic()
        for key, kept in self._kept.items():
            if kept.until > now and size_bytes <= self._max_bytes:
                break  # the others are younger
            if kept.reply.done():
                gone.append(key)
                size_bytes -= kept.size_bytes
        for key in gone:
            self._remove(key)

    def _remove(self, key: str) -> None:
        self._size_bytes -= self._kept.pop(key).size_bytes
