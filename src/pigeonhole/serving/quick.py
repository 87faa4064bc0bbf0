"""The short way to `POST /predict`: from a plain request to its answer, past ASGI and all that is made of a request there.

The same functions check, answer and write down what happens as on the long way (edge.py, app.py); what plain.py lets through
needs no other check of theirs.
"""

import asyncio
import logging

from starlette.datastructures import Headers

from pigeonhole.serving.access import Access
from pigeonhole.serving.edge import GONE, OUR_MISTAKE, Accounts, Exchange, check_content, headers_of_all, headers_of_problem
from pigeonhole.serving.plain import Answer, Plain
from pigeonhole.serving.problem import Problem
from pigeonhole.serving.schemas import read_question
from pigeonhole.serving.service import Service
from pigeonhole.serving.settings import Settings

CONTENT_TYPE = b"application/json"

logger = logging.getLogger(__name__)


class Quick:
    def __init__(self, service: Service, settings: Settings, access: Access, accounts: Accounts, route: str) -> None:
        """`route` is how telemetry calls it."""
        self._service = service
        self._settings = settings
        self._access = access
        self._accounts = accounts
        self._route = route

    def lets_in(self, request: Plain) -> bool:
        """Whether its head says who may ask; how often is asked when it is whole."""
        return self._access.is_open or self._access.knows(Headers(raw=list(request.headers)), "predict")

    async def answer(self, request: Plain) -> Answer:
        exchange = self._accounts.begin("POST", request.headers)
        exchange.route = self._route
        try:
            answer = await self._predict(request, exchange)
        except asyncio.CancelledError:
            exchange.status = GONE
            raise
        except Problem as problem:
            answer = _refusal(problem, exchange)
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            answer = _refusal(OUR_MISTAKE, exchange)
        finally:
            self._accounts.end(exchange)
        return answer

    async def _predict(self, request: Plain, exchange: Exchange) -> Answer:
        if not self._access.is_open:
            self._access.admit(Headers(raw=list(request.headers)), "predict")
        content_type = dict(request.headers).get(b"content-type", b"")
        if content_type != CONTENT_TYPE:
            check_content({"content-type": content_type.decode()})
        question = read_question(request.body)
        dropped = self._service.dropped()
        body = await self._service.answer(question, exchange.request_id, exchange.began, self._settings.deadline_s)
        level = self._service.kept_since(dropped, self._settings.sample)
        exchange.status = 200
        about = [(b"content-length", b"%d" % len(body)), (b"content-type", CONTENT_TYPE), (b"x-log-durability", level.encode())]
        return Answer(200, about + headers_of_all(exchange.request_id), body)


def _refusal(problem: Problem, exchange: Exchange) -> Answer:
    exchange.status, exchange.code = problem.status, problem.code
    body = problem.body(exchange.request_id)
    return Answer(problem.status, headers_of_problem(problem, body) + headers_of_all(exchange.request_id), body)
