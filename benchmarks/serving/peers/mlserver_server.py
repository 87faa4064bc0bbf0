# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["mlserver==1.7.1", "onnxruntime==1.31.1", "tokenizers==0.23.3"]
# ///
"""MLServer with its adaptive batching, a runtime of our own. MODEL, PORT."""

import asyncio
import json
import os

from batch import Model
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Classify(MLModel):
    async def load(self) -> bool:
        self.model = Model(os.environ["MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        answers = [json.dumps(found) for found in await asyncio.to_thread(self.model.predict, texts)]
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("answers", answers)])


async def main() -> None:
    port = int(os.environ["PORT"])
    settings = Settings(
        http_port=port, grpc_port=port + 1, metrics_port=port + 2, parallel_workers=0, debug=False, host="127.0.0.1"
    )
    model = ModelSettings(name="classify", implementation=Classify, max_batch_size=32, max_batch_time=0.005)
    await MLServer(settings).start(models_settings=[model])


if __name__ == "__main__":
    asyncio.run(main())
