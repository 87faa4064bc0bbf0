"""One model at work: a question goes through the batcher to the classifier and the recorder, and comes back as a reply."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.errors import InferenceError, LogError
from pigeonhole.prediction_log import LogWriter, new_id
from pigeonhole.serving.batcher import Batcher, LateError, OverloadedError, StoppedError
from pigeonhole.serving.problem import Problem
from pigeonhole.serving.recorder import AskedText, Recorder
from pigeonhole.serving.schemas import Question, answer, reply
from pigeonhole.serving.settings import Settings
from pigeonhole.serving.telemetry import Telemetry


class Service:
    """Its batcher has to be started before it is asked, and stopped at the end."""

    def __init__(self, settings: Settings, classifier: Classifier, log: LogWriter) -> None:
        self.manifest = classifier.manifest
        self.precision = classifier.precision
        self.telemetry = Telemetry(classifier.manifest, log.backlog)
        self.batcher = Batcher(self._work, settings.max_waiting)
        self.telemetry.waiting.set_function(lambda: self.batcher.waiting_texts)
        self._classifier = classifier
        self._recorder = Recorder(log, classifier.manifest, settings.text_policy, settings.text_key.encode())

    async def answer(self, question: Question, request_id: str, began: float, deadline_s: float) -> bytes:
        """The body of the 200; when it returns, its predictions are in the log. Raises Problem."""
        now = datetime.now(UTC)
        asked = [AskedText(text, new_id(), request_id, now, began) for text in question.texts]
        predictions = await self._predictions(asked, deadline_s)
        answers = [
            answer(prediction, self.manifest.labels, text.prediction_id, question.top_k)
            for text, prediction in zip(asked, predictions, strict=True)
        ]
        return reply(question, answers, self.manifest.name, self.manifest.version, request_id)

    async def _predictions(self, asked: Sequence[AskedText], deadline_s: float) -> list[Prediction]:
        try:
            return await self.batcher.ask(asked, time.monotonic() + deadline_s)
        except OverloadedError as error:
            self.telemetry.shed.inc()
            raise _later("overloaded", "too many texts are waiting") from error
        except LateError as error:
            raise _later("deadline_passed", "there was no answer within the deadline") from error
        except StoppedError as error:
            raise _later("stopping", "the service is going down") from error
        except InferenceError as error:
            raise Problem(500, "no_usable_answer", "the model gave no usable answer") from error
        except LogError as error:
            raise _later("not_recorded", "the prediction could not be written down, so it is not given out") from error

    def _work(self, asked: Sequence[AskedText]) -> list[Prediction]:
        """On the batcher's thread."""
        began = time.perf_counter()
        predictions = self._classifier.predict([each.text for each in asked])
        self.telemetry.batch(predictions, time.perf_counter() - began)
        self._recorder.record(asked, predictions)
        return predictions


def _later(code: str, detail: str) -> Problem:
    return Problem(503, code, detail, {"retry-after": "1"})
