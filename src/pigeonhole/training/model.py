"""The trained model: any encoder that transformers can classify texts with, taken apart into a body and a linear head.

A BERT body may get an *averaging layer*: one more BertLayer that begins as the average of the token vectors. Sentence encoders
such as all-MiniLM were trained to be read by their average, while BertForSequenceClassification reads the first token alone; with
the layer, an ordinary BertForSequenceClassification reads the average too, and what is saved opens anywhere.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.modeling_bert import BertLayer, BertPooler
from transformers.utils import logging
from transformers.utils.hub import cached_file

from pigeonhole.bundle import Task
from pigeonhole.command import say
from pigeonhole.errors import ConfigError, PigeonholeError, RunError
from pigeonhole.training.pretrained import SCRATCH, Pretrained, verify_weights

# RoBERTa and its relatives count positions from behind their padding's id.
BEHIND_PADDING = (
    "roberta",
    "camembert",
    "xlm-roberta",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "xmod",
    "mpnet",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
)
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SCRATCH_VOCABULARY = 2000
# The average outweighs the first token's own vector by this much; with 8 it was 1 point less accurate on tickets.
AVERAGE_WEIGHT = 20.0
# Small enough for the pooler's tanh to be almost a straight line on vectors of unit variance.
POOLER_SCALE = 0.3


class FirstTokenLayer(BertLayer):
    """The last layer of a BERT whose pooler reads the first token alone: only that token's vector is computed.

    The same parameters and the same answer as BertLayer, 12 % less work for 7 layers, in training and in the exported graph.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: object, **__: object) -> Tensor:
        """hidden_states (b, t, d) -> (b, 1, d)."""
        attention, first = self.attention.self, hidden_states[:, :1]
        heads = (attention.num_attention_heads, attention.attention_head_size)
        query = attention.query(first).unflatten(-1, heads).transpose(1, 2)  # (b, h, 1, d/h)
        key = attention.key(hidden_states).unflatten(-1, heads).transpose(1, 2)  # (b, h, t, d/h)
        value = attention.value(hidden_states).unflatten(-1, heads).transpose(1, 2)
        mask = None if attention_mask is None else attention_mask[:, :, :1]  # (b, 1, 1, t)
        dropout = attention.dropout.p if self.training else 0.0
        context = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        attended = self.attention.output(context.transpose(1, 2).flatten(2), first)
        return cast(Tensor, self.output(self.intermediate(attended), attended))


class TextClassifier(nn.Module):
    """`body` gives an embedding (b, d) for token ids (b, t); `head` gives logits (b, c)."""

    def __init__(self, body: PreTrainedModel, head_name: str, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.head_name = head_name

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return cast(Tensor, self.body(input_ids=input_ids, attention_mask=attention_mask).logits)  # (b, d)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """-> logits (b, c), embedding (b, d)."""
        embedding = self.embed(input_ids, attention_mask)
        return self.head(embedding), embedding

    def save_twin(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write what `transformers.pipeline("text-classification", model=folder)` opens. Raises RunError."""
        self.body.set_submodule(self.head_name, self.head)
        try:
            self.body.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # its word for any failure to write
            raise RunError(f"{folder}: cannot be written: {error}; the same command goes on once it can") from error
        finally:
            self.body.set_submodule(self.head_name, nn.Identity())
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, unreadable for another user's server


@contextlib.contextmanager
def reading(pretrained: Pretrained, key: str = "model.pretrained") -> Iterator[None]:
    """Raises ConfigError for files that do not fit: transformers reads on until something breaks, in any way there is."""
    try:
        yield
    except (PigeonholeError, MemoryError):
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{key}={pretrained.source}: cannot be loaded: {type(error).__name__}: {said}; "
            "expected a whole folder as save_pretrained writes it, or a hub id that can be reached"
        ) from error


def load_tokenizer(pretrained: Pretrained, texts: Sequence[str], key: str = "model.pretrained") -> PreTrainedTokenizerFast:
    """The encoder's own tokenizer, or a WordPiece one trained on `texts` for a model from scratch. Raises ConfigError."""
    if pretrained.source == SCRATCH:
        return _train_tokenizer(texts)
    with reading(pretrained, key):
        tokenizer = AutoTokenizer.from_pretrained(pretrained.source, revision=pretrained.revision, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"{key}={pretrained.source}: has no fast tokenizer (tokenizer.json); choose another encoder")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes of a folder without one
        raise ConfigError(f"{key}={pretrained.source}: its tokenizer knows no word; is tokenizer.json missing?")
    return tokenizer


def require_fit(body: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, mismatched: Sequence[str], where: str) -> None:
    """Raises ConfigError where weights are not of the shape that config.json says, or the tokenizer is another model's."""
    if mismatched:
        raise ConfigError(
            f"{where}: {', '.join(mismatched[:3])} in model.safetensors are of another shape than config.json says: "
            f"{len(mismatched)} in all; give the config.json that was saved with these weights"
        )
    highest, known = max(tokenizer.get_vocab().values()), cast(nn.Embedding, body.get_input_embeddings()).num_embeddings
    if highest >= known:
        raise ConfigError(
            f"{where}: its tokenizer gives ids up to {highest}, the encoder knows {known}; "
            "give the tokenizer that was saved with it"
        )


def load_model(
    pretrained: Pretrained,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    averaging_layer: bool,
    max_length: int,
    layers: int | None = None,
    task: Task = "single_label",
) -> TextClassifier:
    """Body and fresh head for `labels`; `layers`: so many of the lowest. Raises ConfigError where the encoder does not fit."""
    names = dict(enumerate(labels))
    ids = {label: number for number, label in names.items()}
    if pretrained.source == SCRATCH:
        config = _tiny_config(tokenizer.vocab_size)
    else:
        with reading(pretrained):
            config = AutoConfig.from_pretrained(pretrained.source, revision=pretrained.revision, trust_remote_code=False)
    require_layers(config, f"model.pretrained={pretrained.source}")
    config.id2label, config.label2id = names, ids
    config.problem_type = "multi_label_classification" if task == "multi_label" else "single_label_classification"
    positions = positions_of(config)
    if positions is not None and max_length > positions:
        raise ConfigError(f"model.max_length={max_length}: this encoder reads at most {positions} tokens")
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise ConfigError(f"model.layers={layers}: this encoder has {config.num_hidden_layers} layers")
        config.num_hidden_layers = layers
    if averaging_layer:
        _require_bert(config)
        config.num_hidden_layers += 1
    if pretrained.source == SCRATCH:
        body: PreTrainedModel = BertForSequenceClassification(config)
    else:
        body = _load(pretrained, config, tokenizer, new_layers=1 if averaging_layer else 0)
    if averaging_layer:
        average_tokens(cast(BertForSequenceClassification, body))
    if isinstance(body, BertForSequenceClassification):
        body.bert.encoder.layer[-1].__class__ = FirstTokenLayer
    model = take_apart(body)
    if model.head.bias is None:
        raise ConfigError(f"model.pretrained: the head of {type(body).__name__} has no bias; choose another encoder")
    return model


def require_layers(config: PretrainedConfig, where: str) -> None:
    """Raises ConfigError for an encoder without any."""
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise ConfigError(f"{where}: config.json says num_hidden_layers={config.num_hidden_layers}")


def positions_of(config: PretrainedConfig) -> int | None:
    """How many tokens the model reads at most; None where nothing says so."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < 1:  # XLNet says -1
        return None
    if positions is not None and config.model_type in BEHIND_PADDING:
        return positions - int(config.pad_token_id + 1)
    return positions


def _load(
    pretrained: Pretrained, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, new_layers: int
) -> PreTrainedModel:
    """Weights that are not there begin at random: expected of the head and of the last `new_layers`, told of all others."""
    with _quiet(), reading(pretrained):
        if pretrained.sha256 is not None:
            fetched = cast(str, cached_file(pretrained.source, "model.safetensors", revision=pretrained.revision))
            verify_weights(pretrained.source, Path(fetched), pretrained.sha256)
        body, info = AutoModelForSequenceClassification.from_pretrained(
            pretrained.source,
            revision=pretrained.revision,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # an earlier run's twin may have another number of labels: its head begins anew
            output_loading_info=True,
        )
    first = config.num_hidden_layers - new_layers
    expected = [f".layer.{number}." for number in range(first, config.num_hidden_layers)] + [".pooler."]
    own = f"{body.base_model_prefix}."
    mismatched = sorted(key for key, *_ in info["mismatched_keys"] if key.startswith(own))
    require_fit(body, tokenizer, mismatched, f"model.pretrained={pretrained.source}")
    missing = sorted(key for key in info["missing_keys"] if key.startswith(own) and not any(part in key for part in expected))
    if missing:
        say(f"warning: {pretrained.source} has no weights for {', '.join(missing[:3])}: {len(missing)} in all begin at random")
    return cast(PreTrainedModel, body)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own table of what it did not find."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def take_apart(body: PreTrainedModel, where: str = "model.pretrained") -> TextClassifier:
    """Raises ConfigError for a body that ends in no linear layer."""
    for name in ("classifier", "classifier.out_proj", "score"):
        try:
            head = body.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(head, nn.Linear):
            if name == "score" and body.config.pad_token_id is None:  # a decoder, which reads the last token before the padding
                raise ConfigError(f"{where}: {type(body).__name__} has no pad_token_id; choose an encoder")
            body.set_submodule(name, nn.Identity())
            return TextClassifier(body, name, head)
    raise ConfigError(f"{where}: {type(body).__name__} ends in no linear layer that is known here; choose another encoder")


@torch.no_grad()
def average_tokens(model: BertForSequenceClassification) -> None:
    """Make the last layer an average of the token vectors and the pooler almost the identity.

    Keys of zero attend to every token alike; small random queries let the attention be learned from there. The feed-forward
    part begins as nothing, the layer norms as plain normalisation: the first token leaves as LayerNorm(own + 20 * average).
    """
    layer = cast(BertLayer, model.bert.encoder.layer[-1])
    attention, pooler = layer.attention, cast(BertPooler, model.bert.pooler)
    identity = torch.eye(model.config.hidden_size)
    attention.self.query.weight.normal_(0, 0.02)
    attention.self.key.weight.zero_()
    attention.self.value.weight.copy_(AVERAGE_WEIGHT * identity)
    attention.output.dense.weight.copy_(identity)
    layer.output.dense.weight.zero_()
    pooler.dense.weight.copy_(POOLER_SCALE * identity)
    for linear in (*attention.self.children(), attention.output.dense, layer.output.dense, pooler.dense):
        if isinstance(linear, nn.Linear):
            linear.bias.zero_()
    for norm in (attention.output.LayerNorm, layer.output.LayerNorm):
        norm.weight.fill_(1)
        norm.bias.zero_()


def _require_bert(config: object) -> None:
    kind = getattr(config, "model_type", "unknown")
    if kind != "bert":
        raise ConfigError(f"model.averaging_layer=true: works with BERT encoders, this one is {kind}; set it to false")


def _tiny_config(vocab_size: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """WordPiece over the most frequent words and every character; the library's own trainer breaks ties anew in each run."""
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))
    entries = dict.fromkeys([*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters), *frequent])
    vocabulary = {token: number for number, token in enumerate(list(entries)[:SCRATCH_VOCABULARY])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
