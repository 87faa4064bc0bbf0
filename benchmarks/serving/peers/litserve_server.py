# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["litserve==0.2.19", "onnxruntime==1.31.1", "tokenizers==0.23.3"]
# ///
"""LitServe with its dynamic batching. MODEL, PORT."""

import os

import litserve
from batch import Model


class Classify(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model(os.environ["MODEL"])

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    def predict(self, texts: list[str]) -> list[dict[str, str | float]]:
        return self.model.predict(texts)

    def unbatch(self, output: list[dict[str, str | float]]) -> list[dict[str, str | float]]:
        return output

    def encode_response(self, output: dict[str, str | float]) -> dict[str, str | float]:
        return output


if __name__ == "__main__":
    api = Classify(max_batch_size=32, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(port=int(os.environ["PORT"]), log_level="error", generate_client_file=False)
