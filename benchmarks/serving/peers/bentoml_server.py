# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["bentoml==1.4.39", "onnxruntime==1.31.1", "tokenizers==0.23.3"]
# ///
"""BentoML with its adaptive batching: a service that takes texts one by one and hands them to one that batches. MODEL, PORT."""

import os
import sys

import bentoml
from batch import Model


@bentoml.service(traffic={"timeout": 60}, workers=1)
class Classify:
    def __init__(self) -> None:
        self.model = Model(os.environ["MODEL"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60_000)
    def predict(self, text: list[str]) -> list[dict[str, str | float]]:
        return self.model.predict(text)


if __name__ == "__main__":
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_server:Classify", "--port", os.environ["PORT"]]
    os.execv(sys.executable, command)  # noqa: S606  its server wants to be started by its own command
