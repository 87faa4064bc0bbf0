"""FastAPI and a transformers pipeline over the save_pretrained folder TWIN, in the project's own environment. PORT."""

import os

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

torch.set_num_threads(1)
classify = pipeline("text-classification", model=os.environ["TWIN"], device="cpu")
app = FastAPI()


class Question(BaseModel):
    text: str


@app.post("/predict")
def predict(question: Question) -> dict[str, str | float]:
    answer: dict[str, str | float] = classify(question.text)[0]
    return answer


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="error")
