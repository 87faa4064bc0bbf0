# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["fastapi==0.165.0", "onnxruntime==1.31.1", "tokenizers==0.23.3", "uvicorn==0.54.0"]
# ///
"""FastAPI and ONNX Runtime, a text at a time in FastAPI's thread pool: what most tutorials end with. MODEL, PORT."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from tokenizers import Tokenizer

FOLDER = Path(os.environ["MODEL"])
LABELS = json.loads((FOLDER / "labels.json").read_text())
tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
tokenizer.no_padding()
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(FOLDER / "model.onnx", options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    label: str
    score: float


@app.post("/predict")
def predict(question: Question) -> Answer:
    input_ids = np.array([tokenizer.encode(question.text).ids])
    logits = session.run(["logits"], {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)})[0][0]
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    return Answer(label=LABELS[int(probabilities.argmax())], score=float(probabilities.max()))


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="error")
