"""Texts -> what training reads of them, by the rule for long texts that the bundle will have; nothing is cut in silence."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pigeonhole.bundle import Windowing, WindowRule
from pigeonhole.classifier import Encoder
from pigeonhole.command import say
from pigeonhole.errors import ConfigError
from pigeonhole.training.batches import TokenizedRows
from pigeonhole.training.config import ModelConfig


def windowing_of(model: ModelConfig) -> Windowing:
    if model.windowing == "truncate":
        return Windowing()
    return Windowing("max" if model.windowing == "max" else "mean", model.window_overlap, model.most_windows)


def make_encoder(tokenizer: Tokenizer, model: ModelConfig) -> Encoder:
    """Raises ConfigError where all that a window holds would stand in the next one too."""
    windowing, special = windowing_of(model), tokenizer.num_special_tokens_to_add(is_pair=False)
    room = model.max_length - special
    if windowing.rule != "truncate" and windowing.overlap >= room:
        raise ConfigError(
            f"model.window_overlap={windowing.overlap}: a window of model.max_length={model.max_length} holds {room} tokens of a "
            f"text beside {special} special ones; expected less than {room}"
        )
    return Encoder(tokenizer, model.max_length, windowing)


def tokenize(encoder: Encoder, rule: WindowRule, texts: Sequence[str], label_ids: NDArray[np.int64]) -> TokenizedRows:
    """`label_ids`: (n, …), one row a text."""
    encodings = encoder.encode(texts)
    truncated = sum(found.truncated for found in encodings)
    if truncated:
        limit = "max_length" if rule == "truncate" else "most_windows"
        say(f"data: {truncated} of {len(texts)} texts are longer than model.{limit} and were cut")
    more = {row: found.more for row, found in enumerate(encodings) if found.more}
    return TokenizedRows([found.input_ids for found in encodings], label_ids, more, rule)
