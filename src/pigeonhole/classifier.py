"""The one door to a model: texts -> encode -> forward -> decode -> calibrated, ranked labels.

Serving, evaluation, batch scoring and the end of training all come through here. Promises: order is kept; a text's answer does
not depend on the texts beside it, not even in its last bit.
"""

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
import numpy as np
import onnxruntime as ort
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pigeonhole.bundle import (
    GOLDEN,
    TOKENIZER,
    Bundle,
    Golden,
    Manifest,
    Precision,
    Windowing,
    WindowRule,
    read_golden,
    require_same,
)
from pigeonhole.decision import Decision, Judge, read_neighbours
from pigeonhole.errors import BundleError, InferenceError

OUTPUTS = {"logits": "tensor(float)", "text_embedding": "tensor(float)"}
ENCODE_TEXTS = 64
BATCH_TOKENS = 160  # of one forward pass: fewer read the weights too often, more take memory (128 are 3 % slower, 256 no faster)
VIEW_WIDTH = 16  # of the narrowest view; the next ones are twice as wide each
GOLDEN_DEADLINE_S = 5.0  # the probes take milliseconds; a graph that never ends must not hold up a start or a rollout
# A probe's logits may differ from the sealing host's by this much.
GOLDEN_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "int8": 0.1}
# In int8 the last bit of another CPU moves a number by a step, and so all that is computed from it: logits are rounded anew, 0.08
# away or more, and on the whole as far from fp32's as they were (0.7 to 1.1 times). They may be so many times as far, or as near.
GOLDEN_FARTHER = 3


class Encoding(msgspec.Struct, frozen=True):
    """A text as the model reads it: its first max_length tokens, and `more` windows of them where its rule has such.

    n_tokens counts each token of the text once, and the special tokens of the first window.
    """

    input_ids: list[int]
    n_tokens: int
    unknown_tokens: int
    truncated: bool
    more: list[list[int]] = []

    @property
    def windows(self) -> list[list[int]]:
        return [self.input_ids, *self.more]


class Prediction(msgspec.Struct, frozen=True, eq=False):
    """The answer to one text. probabilities and logits: (c,) in the order of the labels; embedding: (d,), what the head reads.

    `ranked` are the ids of all labels, (c,), the likeliest first.

    `label` is the likeliest label, `labels` are those that the text is given: this one, or in a multi-label bundle any number of
    them, in the order of the labels. `score` is the probability that `labels` are right, all of them and no other.
    """

    label: str
    label_id: int
    labels: tuple[str, ...]
    score: float
    decision: Decision
    probabilities: NDArray[np.float64]
    ranked: NDArray[np.int64]
    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]
    n_tokens: int
    unknown_tokens: int
    truncated: bool


def most_windows(manifest: Manifest, text: str) -> int:
    """In how many windows a text is read, told by its characters alone: about one a token at most, and mostly four."""
    if manifest.windowing.rule == "truncate":
        return 1
    return min(manifest.windowing.most, 1 + len(text) // (manifest.max_length - manifest.windowing.overlap))


class Encoder:
    """Texts -> ids, the same in training and in serving. Special tokens in a text (`[SEP]`) are read as ordinary text."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, windowing: Windowing | None = None) -> None:
        self._windowing = windowing or Windowing()
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, stride=self._windowing.overlap)
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.vocabulary_size: int = tokenizer.get_vocab_size()
        self._unknown_id = _unknown_id(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """A slice at a time: the library's own objects take 100 bytes a token, those of the part that is cut off too."""
        slices = (texts[start : start + ENCODE_TEXTS] for start in range(0, len(texts), ENCODE_TEXTS))
        return [self._read(found) for some in slices for found in self._tokenizer.encode_batch_fast(list(some))]

    def _read(self, found: tokenizers.Encoding) -> Encoding:
        ids, overflowing = found.ids, found.overflowing
        n_tokens, unknown_tokens = len(ids), ids.count(self._unknown_id)
        if self._windowing.rule == "truncate" or not overflowing:
            return Encoding(ids, n_tokens, unknown_tokens, truncated=bool(overflowing))
        further = overflowing[: self._windowing.most - 1]
        for window in further:
            own = [token for token, special in zip(window.ids, window.special_tokens_mask, strict=True) if not special]
            fresh = own[self._windowing.overlap :]
            n_tokens += len(fresh)
            unknown_tokens += fresh.count(self._unknown_id)
        more = [window.ids for window in further]
        return Encoding(ids, n_tokens, unknown_tokens, truncated=len(more) < len(overflowing), more=more)


class Layout(Protocol):
    """How a graph wants its tokens. Texts of one width share a forward pass, without a trace of it in their answers."""

    def width(self, n_tokens: int) -> int: ...

    def inputs(self, rows: Sequence[Sequence[int]], width: int) -> dict[str, NDArray[np.int64]]: ...


class Padded:
    """`input_ids` and `attention_mask` (b, t), for texts of equal length: nothing is padded.

    Padding would shift the last bits of an answer (up to 1e-5 of a logit for one text in ten).
    """

    def width(self, n_tokens: int) -> int:
        return n_tokens

    def inputs(self, rows: Sequence[Sequence[int]], width: int) -> dict[str, NDArray[np.int64]]:
        input_ids = np.array(rows, np.int64)  # (b, t)
        return {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}


class Packed:
    """`input_ids` (n,), `view` (b, t) and `place` (n,), as training/packed.py says; a view is 16, 32, 64, … places wide."""

    def width(self, n_tokens: int) -> int:
        return max(VIEW_WIDTH, 1 << (n_tokens - 1).bit_length())

    def inputs(self, rows: Sequence[Sequence[int]], width: int) -> dict[str, NDArray[np.int64]]:
        input_ids = np.array([token for row in rows for token in row], np.int64)  # (n,)
        places = [range(number * width, number * width + len(row)) for number, row in enumerate(rows)]
        place = np.array([found for row in places for found in row], np.int64)
        view = np.full(len(rows) * width, -1, np.int64)
        view[place] = np.arange(len(place))
        return {"input_ids": input_ids, "view": view.reshape(-1, width), "place": place}


# By the names of a graph's inputs, each of them tensor(int64).
LAYOUTS: dict[frozenset[str], Layout] = {
    frozenset({"input_ids", "attention_mask"}): Padded(),
    frozenset({"input_ids", "view", "place"}): Packed(),
}


class Classifier:
    """A bundle that answers. One instance belongs to one thread at a time."""

    def __init__(
        self, manifest: Manifest, precision: Precision, session: ort.InferenceSession, encoder: Encoder, judge: Judge
    ) -> None:
        self.manifest = manifest
        self.precision: Precision = precision
        self.labels = manifest.labels
        self.batch_tokens = BATCH_TOKENS
        self._session = session
        self._layout = LAYOUTS[frozenset(node.name for node in session.get_inputs())]
        self._encoder = encoder
        self._run_options = ort.RunOptions()
        self._judge = judge

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision | None = None, threads: int = 1) -> "Classifier":
        """Load a bundle's model (`precision`: the one that the manifest serves) and replay its golden answers.

        Raises BundleError for a graph that does not fit the manifest or does not answer as it did when it was sealed, and for a
        folder in whose place another one has come meanwhile.
        """
        classifier = cls.load(bundle, precision, threads)
        _replay_golden(classifier, bundle)
        require_same(bundle)
        return classifier

    @classmethod
    def load(cls, bundle: Bundle, precision: Precision | None = None, threads: int = 1) -> "Classifier":
        """As `open`, but without the golden answers: for a bundle that is still being made."""
        chosen = precision or bundle.manifest.served
        if chosen not in bundle.manifest.models:
            raise BundleError(f"{bundle.url}: has no {chosen} model; it has {', '.join(sorted(bundle.manifest.models))}")
        session = _open_session(bundle, bundle.manifest.models[chosen], threads)
        manifest = bundle.manifest
        encoder = _open_encoder(bundle)
        neighbours = read_neighbours(bundle, _width(session, "text_embedding"))
        return cls(manifest, chosen, session, encoder, Judge(manifest, neighbours))

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Raises InferenceError when the model gives a logit that is not a number."""
        encodings = self._encoder.encode(texts)
        return self._decode(encodings, *self._forward(encodings))

    def predict_once(self, texts: Sequence[str]) -> list[Prediction]:
        """As `predict`; texts that are one to the model, in another case for instance, pass through it once."""
        encodings = self._encoder.encode(texts)
        first: dict[tuple[tuple[int, ...], ...], Encoding] = {}
        keys = [tuple(map(tuple, encoding.windows)) for encoding in encodings]
        for key, encoding in zip(keys, encodings, strict=True):
            first.setdefault(key, encoding)
        logits, embeddings = (dict(zip(first, rows, strict=True)) for rows in self._forward(list(first.values())))
        return self._decode(encodings, [logits[key] for key in keys], [embeddings[key] for key in keys])

    def under(self, manifest: Manifest, neighbours: NDArray[np.float32] | None) -> "Classifier":
        """The same model with the rules of `manifest`; for those that were fitted on its answers."""
        other = Classifier(manifest, self.precision, self._session, self._encoder, Judge(manifest, neighbours))
        other.batch_tokens = self.batch_tokens
        return other

    def judge_again(self, found: Prediction) -> Prediction:
        """The answer that this classifier's rules give to the numbers of another's."""
        encoding = Encoding([], found.n_tokens, found.unknown_tokens, found.truncated)
        return self._decode([encoding], [found.logits], [found.embedding])[0]

    def try_last_token(self) -> None:
        """Raises what onnxruntime raises where the tokenizer has more tokens than the model has embeddings."""
        self._forward([Encoding([self._encoder.vocabulary_size - 1], 1, 0, truncated=False)])

    def _forward(self, encodings: Sequence[Encoding]) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        windows = [window for encoding in encodings for window in encoding.windows]
        logits: dict[int, NDArray[np.float32]] = {}
        embeddings: dict[int, NDArray[np.float32]] = {}
        for width, batch in self._batches(windows):
            inputs = self._layout.inputs([windows[row] for row in batch], width)
            found = self._session.run(list(OUTPUTS), inputs, self._run_options)  # (b, c), (b, d)
            logits.update(zip(batch, found[0], strict=True))
            embeddings.update(zip(batch, found[1], strict=True))
        counts = [1 + len(encoding.more) for encoding in encodings]
        in_order = range(len(windows))
        return (
            aggregate([logits[row] for row in in_order], counts, self.manifest.windowing.rule),
            aggregate([embeddings[row] for row in in_order], counts, "mean"),
        )

    @contextlib.contextmanager
    def within(self, deadline_s: float) -> Iterator[None]:
        """A forward pass that is still running when the time is up raises there what onnxruntime raises."""
        timer = threading.Timer(deadline_s, setattr, (self._run_options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            self._run_options.terminate = False

    def _batches(self, windows: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
        """Rows of equal width, at most `self.batch_tokens` tokens together (or one row)."""
        order = sorted(range(len(windows)), key=lambda row: len(windows[row]))
        batches: list[tuple[int, list[int]]] = []
        tokens = 0
        for row in order:
            n_tokens = len(windows[row])
            width = self._layout.width(n_tokens)
            tokens += n_tokens
            if batches and batches[-1][0] == width and tokens <= self.batch_tokens:
                batches[-1][1].append(row)
            else:
                batches.append((width, [row]))
                tokens = n_tokens
        return batches

    def _decode(
        self, encodings: Sequence[Encoding], logits: Sequence[NDArray[np.float32]], embeddings: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """All texts at once, each with the bits that it would have alone: numpy adds up a row in the same order beside others."""
        if not encodings:
            return []
        rows = np.stack(logits)  # (n, c)
        if not np.isfinite(rows).all():
            raise InferenceError(f"version {self.manifest.version}: the model gave logits that are not numbers")
        probabilities = self._judge.probabilities(rows)
        ranked = (-probabilities).argsort(axis=1, kind="stable")
        return list(map(self._prediction, encodings, probabilities, ranked, rows, embeddings))

    def _prediction(
        self,
        encoding: Encoding,
        probabilities: NDArray[np.float64],
        ranked: NDArray[np.int64],
        logits: NDArray[np.float32],
        embedding: NDArray[np.float32],
    ) -> Prediction:
        label_id = int(ranked[0])
        labels, score = self._judge.given(label_id, probabilities)
        return Prediction(
            label=self.labels[label_id],
            label_id=label_id,
            labels=labels,
            score=score,
            decision=self._judge.decide(label_id, score, logits, embedding),
            probabilities=probabilities,
            ranked=ranked,
            logits=logits,
            embedding=embedding,
            n_tokens=encoding.n_tokens,
            unknown_tokens=encoding.unknown_tokens,
            truncated=encoding.truncated,
        )


def aggregate(windows: Sequence[NDArray[np.float32]], counts: Sequence[int], rule: WindowRule) -> list[NDArray[np.float32]]:
    """The vectors of all windows, `counts` of them a text -> one a text; that of a single window is left as it is."""
    merged, start = [], 0
    for count in counts:
        own = windows[start : start + count]
        merged.append(own[0] if count == 1 else np.max(own, axis=0) if rule == "max" else np.mean(own, axis=0))
        start += count
    return merged


def _unknown_id(tokenizer: Tokenizer) -> int:
    found = (tokenizer.token_to_id(token) for token in ("[UNK]", "<unk>"))
    return next((token_id for token_id in found if token_id is not None), -1)


def _open_encoder(bundle: Bundle) -> Encoder:
    # Its threads cost a few short texts more than they give: 6 % of all that a text takes in int8.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    manifest = bundle.manifest
    try:
        encoder = Encoder(Tokenizer.from_file(str(bundle.path(TOKENIZER))), manifest.max_length, manifest.windowing)
        encoder.encode(["a " * manifest.max_length])  # one that is cut
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and where it panics not even that
        raise BundleError(f"{bundle.url}: {TOKENIZER} cannot be read: {error}") from error
    return encoder


def session_options(threads: int, *, sums_fit: bool) -> ort.SessionOptions:
    """As a bundle's graphs are run everywhere; `sums_fit`: the manifest's int8_sums_fit."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # a plan for each shape that ever came: 10 MB, and no faster
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not sums_fit:  # logits were 0.5 off on a CPU without VNNI; exact, it takes a seventh more time there
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _open_session(bundle: Bundle, file: str, threads: int) -> ort.InferenceSession:
    options = session_options(threads, sums_fit=bundle.manifest.int8_sums_fit)
    try:
        session = ort.InferenceSession(str(bundle.path(file)), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise BundleError(f"{bundle.url}: {file} cannot be loaded: {str(error)[:300]}") from error
    _check_signature(bundle, file, session)
    return session


def _check_signature(bundle: Bundle, file: str, session: ort.InferenceSession) -> None:
    inputs, outputs = ({node.name: node.type for node in found} for found in (session.get_inputs(), session.get_outputs()))
    if frozenset(inputs) not in LAYOUTS or set(inputs.values()) != {"tensor(int64)"}:
        expected = " or ".join(", ".join(sorted(names)) for names in LAYOUTS)
        raise BundleError(f"{bundle.url}: {file} has inputs {inputs}, expected {expected}, all of them tensor(int64)")
    if outputs != OUTPUTS:
        raise BundleError(f"{bundle.url}: {file} has outputs {outputs}, expected {OUTPUTS}")
    width = _width(session, "logits")
    if isinstance(width, int) and width != len(bundle.manifest.labels):
        raise BundleError(f"{bundle.url}: {file} gives {width} logits, the manifest has {len(bundle.manifest.labels)} labels")


def _width(session: ort.InferenceSession, output: str) -> object:
    """Of a row; an int where the graph says so."""
    shape = next(node.shape for node in session.get_outputs() if node.name == output)
    return shape[-1] if shape else None


def _replay_golden(classifier: Classifier, bundle: Bundle) -> None:
    file = bundle.manifest.models[classifier.precision]
    probes = [probe for probe in read_golden(bundle) if classifier.precision in probe.logits]
    if not probes:
        raise BundleError(f"{bundle.url}: {GOLDEN} has no answers for {classifier.precision}")
    tolerance = GOLDEN_TOLERANCE[classifier.precision]
    try:
        with classifier.within(GOLDEN_DEADLINE_S):
            predictions = classifier.predict([probe.text for probe in probes])
            classifier.try_last_token()
    except InferenceError as error:
        raise BundleError(f"{bundle.url}: {file}: {error}") from error
    except Exception as error:  # a graph that loads may still fail to run; onnxruntime's errors share no base class
        raise BundleError(f"{bundle.url}: {file} does not run: {str(error)[:300]}") from error
    logits = np.stack([prediction.logits for prediction in predictions])  # (p, c)
    sealed = np.array([probe.logits[classifier.precision] for probe in probes])
    if logits.shape != sealed.shape:
        raise BundleError(f"{bundle.url}: {file} gives {logits.shape[1]} logits, {GOLDEN} has {sealed.shape[1]}")
    differences = np.abs(logits - sealed).max(axis=1)
    number = int(differences.argmax())
    if differences[number] > tolerance and not (classifier.precision == "int8" and is_rounded_anew(times_as_far(logits, probes))):
        raise BundleError(
            f"{bundle.url}: {file} answers golden probe {number} {differences[number]:.2g} off its logits (at most {tolerance})"
        )


def times_as_far(logits: NDArray[np.float32], probes: Sequence[Golden]) -> float:
    """How far (p, c) logits in int8 are from fp32's sealed ones, to how far int8's sealed ones are; infinite without such."""
    if any(not {"fp32", "int8"} <= probe.logits.keys() for probe in probes):
        return math.inf
    fp32, sealed = np.array([probe.logits["fp32"] for probe in probes]), np.array([probe.logits["int8"] for probe in probes])
    then = np.linalg.norm(sealed - fp32)
    return float(np.linalg.norm(logits - fp32) / then) if then else math.inf


def is_rounded_anew(times: float) -> bool:
    """Whether that is another CPU's rounding; sealed logits that are too far themselves may be the wrong ones."""
    return 1 / GOLDEN_FARTHER <= times <= GOLDEN_FARTHER
