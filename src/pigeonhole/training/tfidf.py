"""TF-IDF and logistic regression as a bundle: a word tokenizer, and a graph that counts its ids and is exact to the last bit.

The tokenizer lower-cases and finds the words (`tokenizer.json`, read by the same door as any encoder's), so what is counted in
training is what is counted in serving. The graph takes texts of equal length, as any traced one: counts of words and word pairs
-> sublinear TF-IDF of unit length -> logits. Sums run over a text's own words only, in a product of its own: no company changes
a bit.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from pigeonhole.errors import DataError
from pigeonhole.evaluation.logistic import fit_logistic, weights_of
from pigeonhole.training.batches import TokenizedRows

START, UNKNOWN = 0, 1  # ids: the first place of every text, so that none is empty; a word that training never met
SPECIAL_TOKENS = ("[CLS]", "[UNK]")
WORD = r"\w\w+"  # scikit-learn's own idea of a word
EMBEDDING = 128  # dimensions of the latent semantic analysis that drift compares texts by
OPSET = 21

Gram = tuple[int, ...]


@dataclass(frozen=True)
class TfidfModel:
    """Words and pairs of words that count (v of them), and what each is worth. weight (c, v), bias (c,), latent (d, v)."""

    grams: list[Gram]
    idf: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    latent: NDArray[np.float64]
    vectorizer: TfidfVectorizer

    def predict_logits(self, rows: TokenizedRows) -> NDArray[np.float32]:
        """-> (n, c), computed by scikit-learn in float64."""
        features = self.vectorizer.transform(rows.input_ids)
        return np.asarray(features @ self.weight.T + self.bias, np.float32)

    def write(self, path: Path) -> None:
        onnx.save(_graph(self), path)


def make_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Every word of the texts, the most frequent first."""
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    counts = Counter(word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: place for place, word in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", START)])
    return tokenizer


def fit(
    rows: TokenizedRows, *, inverse_regularisation: float, pairs: bool, max_features: int, seed: int, balanced: bool = False
) -> TfidfModel:
    """`balanced`: all labels weigh alike. Raises DataError where there is no word, or one alone."""
    vectorizer = TfidfVectorizer(
        analyzer=_with_pairs if pairs else _words, sublinear_tf=True, max_features=max_features, dtype=np.float64
    )
    try:
        features = vectorizer.fit_transform(rows.input_ids)
    except ValueError as error:  # scikit-learn's word for an empty vocabulary
        raise DataError("no text has a word of two letters: model=tfidf has nothing to count; choose another model") from error
    if features.shape[1] < 2:
        raise DataError("the texts have one word of two letters among them all: model=tfidf needs two; choose another model")
    weight, bias = weights_of(fit_logistic(features, rows.label_ids, inverse_regularisation, balanced=balanced))
    d = min(EMBEDDING, features.shape[1] - 1, features.shape[0] - 1)
    latent = TruncatedSVD(d, algorithm="randomized", random_state=seed).fit(features).components_
    grams = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
    return TfidfModel(grams, vectorizer.idf_, weight, bias, latent, vectorizer)


def _words(input_ids: Sequence[int]) -> list[Gram]:
    return [(word,) for word in input_ids if word > UNKNOWN]


def _with_pairs(input_ids: Sequence[int]) -> list[Gram]:
    return [*_words(input_ids), *(pair for pair in itertools.pairwise(input_ids) if min(pair) > UNKNOWN)]


def _graph(model: TfidfModel) -> onnx.ModelProto:
    """input_ids (b, t) -> logits (b, c), text_embedding (b, d); attention_mask is all ones and not looked at."""
    # The operator wants all words before all pairs; `order` is their order in it.
    order = sorted(range(len(model.grams)), key=lambda place: (len(model.grams[place]), place))
    words = sum(len(gram) == 1 for gram in model.grams)
    v = len(order)
    longest_count = 1 << 16
    tf = np.concatenate([[0.0], 1 + np.log(np.arange(1, longest_count + 1))]).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {
        "tf": tf,
        "idf": model.idf[order].astype(np.float32),
        "weight": np.ascontiguousarray(model.weight.T[order], np.float32),  # (v, c)
        "latent": np.ascontiguousarray(model.latent.T[order], np.float32),  # (v, d)
        "bias": model.bias.astype(np.float32),
        "two": np.array([2], np.int64),
        "v": np.array([v], np.int64),
        "one_axis": np.array([1], np.int64),
        "last_axis": np.array([2], np.int64),
        "least": np.array(1e-12, np.float32),
    }
    node = helper.make_node
    nodes = [
        node(
            "TfIdfVectorizer",
            ["input_ids"],
            ["counts"],  # (b, v)
            mode="TF",
            min_gram_length=1,
            max_gram_length=2,
            max_skip_count=0,
            ngram_counts=[0, words],
            ngram_indexes=list(range(v)),
            pool_int64s=[word for place in order for word in model.grams[place]],
        ),
        # t tokens hold fewer than 2 t different words and pairs: the largest 2 t counts are all that there are.
        node("Shape", ["input_ids"], ["t"], start=1, end=2),
        node("Mul", ["t", "two"], ["at_most"]),
        node("Min", ["at_most", "v"], ["k"]),
        node("TopK", ["counts", "k"], ["found", "places"], axis=1),  # (b, k) each
        node("Cast", ["found"], ["times"], to=TensorProto.INT64),
        node("Gather", ["tf", "times"], ["tf_found"]),
        node("Gather", ["idf", "places"], ["idf_found"]),
        node("Mul", ["tf_found", "idf_found"], ["tfidf"]),
        node("Unsqueeze", ["tfidf", "one_axis"], ["row"]),  # (b, 1, k): each text is multiplied by itself
        node("Unsqueeze", ["tfidf", "last_axis"], ["column"]),
        node("MatMul", ["row", "column"], ["square"]),  # (b, 1, 1)
        node("Sqrt", ["square"], ["length"]),
        node("Max", ["length", "least"], ["divisor"]),
        node("Div", ["row", "divisor"], ["unit"]),
    ]
    for table, output in (("weight", "scores"), ("latent", "text_embedding")):
        nodes += [
            node("Gather", [table, "places"], [f"{table}_found"]),  # (b, k, c) or (b, k, d)
            node("MatMul", ["unit", f"{table}_found"], [f"{table}_row"]),
            node("Squeeze", [f"{table}_row", "one_axis"], [output]),
        ]
    nodes.append(node("Add", ["scores", "bias"], ["logits"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tfidf",
        [value(name, TensorProto.INT64, ["b", "t"]) for name in ("input_ids", "attention_mask")],
        [
            value("logits", TensorProto.FLOAT, ["b", len(model.bias)]),
            value("text_embedding", TensorProto.FLOAT, ["b", len(model.latent)]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(found)
    return found
