"""Texts through the encoder as it was pretrained: what can be told from them before anything is fine-tuned."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pigeonhole.errors import ConfigError
from pigeonhole.training import trainer
from pigeonhole.training.config import ModelConfig
from pigeonhole.training.model import load_model, load_tokenizer
from pigeonhole.training.pretrained import TFIDF, locate
from pigeonhole.training.tokenize import make_encoder, tokenize, windowing_of


def embed_texts(config: ModelConfig, labels: Sequence[str], texts: Sequence[str], seed: int, threads: int) -> NDArray[np.float32]:
    """(n, d). Raises ConfigError for an encoder that is not there or does not fit, RunError for one that gives no numbers."""
    if config.pretrained == TFIDF:
        raise ConfigError("model.pretrained=tfidf: there is no encoder in it; choose one, model=minilm for example")
    trainer.set_determinism(seed, threads)
    pretrained = replace(locate(config.pretrained, config.sha256), revision=config.revision)
    tokenizer = load_tokenizer(pretrained, texts)
    encoder = make_encoder(tokenizer.backend_tokenizer, config)
    model = load_model(
        pretrained,
        labels,
        tokenizer,
        averaging_layer=config.averaging_layer,
        max_length=config.max_length,
        layers=config.layers,
    )
    return trainer.embed(model, tokenize(encoder, windowing_of(config).rule, texts, np.zeros(len(texts), np.int64)))
