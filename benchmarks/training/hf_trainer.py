"""Hugging Face's Trainer: `default` as in its public text-classification example, `tuned` as one would set it up with care.

`python -m benchmarks.training.hf_trainer TASK default|tuned [bf16]` prints one JSON object.
"""

import sys
import tempfile
from typing import Any, cast

import msgspec
import torch
from benchmarks.training.task import Clock, Told, read_task
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

# The example's own defaults (pad_to_max_length, max_seq_length, per_device_train_batch_size, learning_rate), and better ones.
DEFAULT = {"per_device_train_batch_size": 8, "learning_rate": 5e-5}
TUNED = {
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-4,
    "warmup_steps": 0.06,
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "length",
}


def main() -> None:
    task, tuned = read_task(sys.argv[1]), sys.argv[2] == "tuned"
    process = Clock()
    torch.set_num_threads(task.threads)
    tokenizer = AutoTokenizer.from_pretrained(task.pretrained)
    names = dict(enumerate(task.labels))
    model = AutoModelForSequenceClassification.from_pretrained(task.pretrained, num_labels=len(names), id2label=names)

    def tokenize(texts: list[str]) -> list[dict[str, Any]]:
        padding: dict[str, Any] = {} if tuned else {"padding": "max_length"}
        found = tokenizer(texts, truncation=True, max_length=task.max_length, **padding)
        return [{key: values[row] for key, values in found.items()} for row in range(len(texts))]

    train = tokenize(task.texts)
    test = tokenize(task.test_texts) if task.test_texts else []
    for row, label_id in zip([*train, *test], [*task.label_ids, *task.test_label_ids], strict=True):
        row |= {"labels": label_id, "length": len(row["input_ids"])}
    clock = Clock()
    accuracies: list[tuple[float, float]] = []

    class Measure(TrainerCallback):
        def on_epoch_end(self, *_: object, **__: object) -> None:
            with clock, process:
                found = cast(Any, trainer.predict(cast(Any, test)))  # grouped by length, its labels as well
                accuracies.append((clock.wall_s(), float((found.predictions.argmax(axis=1) == found.label_ids).mean())))
                model.train()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=task.epochs,
            seed=task.seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=sys.argv[3:] == ["bf16"],
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            **(TUNED if tuned else DEFAULT),
        )
        collator = DataCollatorWithPadding(tokenizer)
        callbacks: list[TrainerCallback] = [Measure()] if test else []
        trainer = Trainer(
            model=model, args=arguments, train_dataset=cast(Any, train), data_collator=collator, callbacks=callbacks
        )
        clock = Clock()
        trainer.train()
    told = Told(len(train) * task.epochs, clock.cpu_s(), clock.wall_s(), process.cpu_s(), process.wall_s(), accuracies)
    print(msgspec.json.encode(told).decode())


if __name__ == "__main__":
    main()
