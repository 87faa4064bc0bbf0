"""What the batching peers share: texts padded to the longest of them, through ONNX Runtime on one thread."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer


class Model:
    def __init__(self, folder: str) -> None:
        self._labels = json.loads(Path(folder, "labels.json").read_text())
        self._tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self._tokenizer.enable_padding()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(Path(folder, "model.onnx"), options, providers=["CPUExecutionProvider"])

    def predict(self, texts: Sequence[str]) -> list[dict[str, str | float]]:
        encodings = self._tokenizer.encode_batch(list(texts))
        inputs = {
            "input_ids": np.array([found.ids for found in encodings]),
            "attention_mask": np.array([found.attention_mask for found in encodings]),
        }
        logits = self._session.run(["logits"], inputs)[0]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        return [{"label": self._labels[int(row.argmax())], "score": float(row.max())} for row in probabilities]
