"""The bundle: the sealed folder that training hands to serving, the one thing that is served.

A flat folder at a URL: `manifest.json`, `model.onnx` and/or `model.int8.onnx`, each with its weights in itself or in a `.data`
beside it, `tokenizer.json`, `golden.json`, `reference.parquet`, `README.md`, and `neighbours.npy` where its rule of what is out
of scope needs it. No pickle, no archive, no code. `manifest.json` lists every other file with its sha256 and size and carries a
seal over its own bytes, so that a byte changed anywhere, a file missing or a file too many is refused by name.

Does not know how a model is run (classifier.py) or where bundles live (registry.py).
"""

import datetime
import hashlib
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pigeonhole import storage
from pigeonhole.errors import NOT_AS_TYPED, BundleError, NotFoundError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
GOLDEN = "golden.json"
NEIGHBOURS = "neighbours.npy"
REFERENCE = "reference.parquet"
CARD = "README.md"
MANIFEST_BYTES = 256 << 20  # at most; one of 10,000 labels with their metrics has MB
DOWNLOADS = 4  # files at a time: small ones are over in the time that a bucket takes to answer
WEIGHTS = ".data"  # added to the name of a model that keeps its weights in a file of their own

Precision = Literal["fp32", "int8"]
Models = Literal["all", "served"] | Precision
Task = Literal["single_label", "multi_label"]
OutOfScopeRule = Literal["neighbour", "max_logit"]
WindowRule = Literal["truncate", "mean", "max"]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Probability = Annotated[float, Meta(ge=0, le=1)]
Factor = Annotated[float, Meta(ge=-1e6, le=1e6)]  # a logit times more may be no number
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}\Z")]

_UNSEALED = "0" * 64


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=1)]


class Windowing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to a text longer than max_length tokens; training, evaluation, serving and batch scoring all obey it.

    `truncate` keeps its beginning. `mean` and `max` read it in windows of max_length tokens, each of which repeats the last
    `overlap` tokens of the one before: the text's logits are the average of theirs, or the largest for each label. What lies
    behind the first `most` windows is cut. An answer says whether anything was.
    """

    rule: WindowRule = "truncate"
    overlap: Annotated[int, Meta(ge=0)] = 0
    most: Annotated[int, Meta(ge=1, le=10_000)] = 1


class ThresholdTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The business target that the thresholds were fitted for, e.g. precision 0.95 of accepted answers."""

    metric: Literal["precision"]
    value: Probability


class VectorScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Calibration of each label by itself, in the order of the labels: its logit times `scale` plus `bias`."""

    scale: tuple[Factor, ...]
    bias: tuple[Factor, ...]


class OutOfScope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text belongs to no label where it is stranger than `limit`.

    Strange is, by `neighbour`, the cosine distance of its embedding to the nearest row of neighbours.npy, and by `max_logit` its
    largest logit, negated.
    """

    rule: OutOfScopeRule
    limit: float


class _Version(msgspec.Struct):
    """What is read first: a manifest of another version may have any other fields."""

    schema_version: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle is. Labels stand in the order of the logits.

    `single_label`: probabilities are a softmax; thresholds are the lowest score that is accepted, by label. `multi_label`: each
    label has a sigmoid of its own, thresholds are the lowest probability at which a label is given, and `accept_score` is the
    lowest score of all labels of a text together that is accepted.

    `int8_sums_fit`: a CPU without VNNI, which adds products of int8 in pairs of 16 bits, cuts none of them off.
    """

    schema_version: Annotated[int, Meta(ge=1, le=SCHEMA_VERSION)]
    name: Name
    version: Name
    created_at: str
    task: Task
    labels: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(min_length=2, max_length=10_000)]
    max_length: Annotated[int, Meta(ge=4, le=65_536)]
    windowing: Windowing
    temperature: Annotated[float, Meta(ge=1e-6, le=1000)]  # a logit over less may be no number
    thresholds: dict[str, Probability]
    threshold_target: ThresholdTarget | None
    models: Annotated[dict[Precision, FileName], Meta(min_length=1)]
    served: Precision
    parity: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    files: dict[FileName, FileEntry]
    seal: Sha256 = _UNSEALED
    vector_scaling: VectorScaling | None = None  # instead of the temperature
    out_of_scope: OutOfScope | None = None
    accept_score: Probability | None = None
    int8_sums_fit: bool = False

    def size_bytes(self, precision: Precision) -> int:
        """Of a model: its graph, and its weights where they are beside it."""
        names = (self.models[precision], self.models[precision] + WEIGHTS)
        return sum(self.files[name].size_bytes for name in names if name in self.files)


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A probe text and the logits that each precision must give for it, in the order of the labels."""

    text: Annotated[str, Meta(max_length=10_000)]  # a start waits until it is read
    logits: dict[Precision, list[float]]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its manifest and the local folder that holds its files."""

    url: str
    folder: Path
    manifest: Manifest

    def path(self, file: str) -> Path:
        return self.folder / file


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json over the files of `folder` (its `files` and `seal` are filled in here) and return it."""
    names = [name for name in storage.list_files(str(folder)) if name != MANIFEST]
    entries = {name: FileEntry(*_digest(folder / name)) for name in names}
    draft = msgspec.structs.replace(manifest, files=entries, seal=_UNSEALED)
    data = msgspec.json.format(msgspec.json.encode(draft), indent=1)
    digest = hashlib.sha256(data).hexdigest()
    storage.write(str(folder / MANIFEST), data.replace(_UNSEALED.encode(), digest.encode()))
    return read_manifest(str(folder))


def open_bundle(url: str, models: Models = "all") -> Bundle:
    """Read a bundle by URL and verify every byte of it; remote ones are copied to a folder of this process first.

    `models`: which of its models are copied; fp32 has four times the bytes of int8, and Cloud Run keeps files in memory. Raises
    BundleError (naming the file) for anything that is not as it was sealed.
    """
    manifest = read_manifest(url)
    local = storage.local_path(url)
    try:
        return Bundle(url, _complete(url, local, manifest, models), manifest)
    except OSError as error:
        why = error.strerror or error
        raise BundleError(f"{error.filename or url}: cannot be read ({why}); check its permissions") from error


def _complete(url: str, local: Path | None, manifest: Manifest, models: Models) -> Path:
    # On a disk also what is no file: a folder or a pipe was not sealed either.
    sizes = {} if local else storage.remote_sizes(url)
    found = ({path.name for path in local.iterdir()} if local else set(sizes)) - {MANIFEST}
    for name in sorted(set(manifest.files) - found):
        raise BundleError(f"{url}: {name} is missing; copy the bundle again from where it was sealed")
    for name in sorted(found - set(manifest.files)):
        raise BundleError(f"{url}: {name!r} is not listed in {MANIFEST}; a bundle holds only what was sealed")
    if local:
        _require_ordinary(url, local / MANIFEST)
        return _verified(url, local, manifest.files)
    asked = manifest.served if models == "served" else models
    kept = {model for precision, model in manifest.models.items() if asked in ("all", precision)}
    left = {name for model in set(manifest.models.values()) - kept for name in (model, model + WEIGHTS)}
    files = {name: entry for name, entry in manifest.files.items() if name not in left}
    for name, entry in files.items():
        if sizes[name] > entry.size_bytes:  # a bucket's worth of zeros would be fetched first
            raise _of_another_size(url, name, sizes[name], entry)
    return _fetch(url, files)


def read_manifest(url: str) -> Manifest:
    """What a bundle says of itself, its seal verified, its other files not looked at. Raises BundleError."""
    if storage.is_local_file(url):
        raise BundleError(f"{url}: this is a file, and a bundle is a folder; no archive is ever unpacked")
    try:
        data = storage.read(storage.join(url, MANIFEST), most=MANIFEST_BYTES)
    except NotFoundError as error:
        raise BundleError(f'{url}: {MANIFEST} is missing; a bundle is the folder that `train` printed as "bundle"') from error
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{url}: {MANIFEST}: schema_version {version}, a newer Pigeonhole sealed it; this one reads up to "
                f"{SCHEMA_VERSION}: install the version that sealed it"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except NOT_AS_TYPED as error:
        raise BundleError(f"{url}: {MANIFEST}: {error}") from error
    unsealed = data.replace(manifest.seal.encode(), _UNSEALED.encode())
    if hashlib.sha256(unsealed).hexdigest() != manifest.seal:
        raise BundleError(f"{url}: {MANIFEST} was changed after it was sealed")
    _check_meaning(url, manifest)
    return manifest


def read_file(url: str, manifest: Manifest, name: str) -> bytes:
    """One verified file of a bundle, by URL. Raises BundleError."""
    try:
        data = storage.read(storage.join(url, name))
    except NotFoundError as error:
        raise BundleError(f"{url}: {name} is missing; copy the bundle again from where it was sealed") from error
    if name not in manifest.files or hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
        raise BundleError(f"{url}: {name} is not what was sealed")
    return data


def _check_meaning(url: str, manifest: Manifest) -> None:
    """What the types of the manifest cannot say."""

    def require(true: bool, what: str) -> None:
        if not true:
            raise BundleError(f"{url}: {MANIFEST}: {what}")

    wanted = "expected a time with its zone such as 2026-03-01T12:00:00+00:00"
    require(_is_moment(manifest.created_at), f"created_at is {manifest.created_at!r}, {wanted}")
    labels = manifest.labels
    written = Counter(unicodedata.normalize("NFC", label) for label in labels)
    twice = sorted(label for label, times in written.items() if times > 1)
    require(not twice, f"labels {twice} stand more than once")
    require(all(map(str.strip, labels)), "labels holds one of spaces alone")
    require(manifest.served in manifest.models, f"served is {manifest.served}, models has {sorted(manifest.models)}")
    required = {*manifest.models.values(), TOKENIZER, GOLDEN}
    require(required <= set(manifest.files), f"files does not list {sorted(required - set(manifest.files))}")
    require(set(manifest.thresholds) == set(labels), "thresholds must name each label once")
    vector, rule = manifest.vector_scaling, manifest.out_of_scope
    fits = vector is None or len(vector.scale) == len(vector.bias) == len(labels)
    require(fits, f"vector_scaling has to have a scale and a bias for each of the {len(labels)} labels")
    needs = rule is not None and rule.rule == "neighbour"
    require(not needs or NEIGHBOURS in manifest.files, f"out_of_scope goes by neighbours, but {NEIGHBOURS} is not listed")
    overlap = manifest.windowing.overlap
    require(overlap <= manifest.max_length // 2, f"windowing overlaps by {overlap} of {manifest.max_length} tokens, at most half")
    several = manifest.task == "multi_label"
    require(several != (manifest.accept_score is None), "accept_score has to be there where task is multi_label, and only there")


def _is_moment(text: str) -> bool:
    try:
        return datetime.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _verified(url: str, folder: Path, files: Mapping[str, FileEntry]) -> Path:
    for name, entry in files.items():
        _verify(url, folder / name, entry)
    return folder


def _verify(url: str, path: Path, entry: FileEntry) -> None:
    _require_ordinary(url, path)
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:  # before the hash: a disk's worth of zeros takes minutes
        raise _of_another_size(url, path.name, size_bytes, entry, _wrong_content(path))
    if _digest(path)[0] != entry.sha256:
        raise BundleError(f"{url}: {path.name} was changed after it was sealed (its sha256 differs)")


def _of_another_size(url: str, name: str, size_bytes: int, entry: FileEntry, hint: str = "") -> BundleError:
    return BundleError(f"{url}: {name} has {size_bytes} bytes where {entry.size_bytes} were sealed{hint}")


def _require_ordinary(url: str, path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{url}: {path.name} is not an ordinary file")


def _wrong_content(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        return "; it is a git-lfs pointer, run `git lfs pull`"
    return "; it is an HTML page" if re.match(rb"\s*<(!doctype|html)", head, re.IGNORECASE) else ""


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return digest.hexdigest(), stream.tell()


_copies: dict[Path, tempfile.TemporaryDirectory[str]] = {}  # of remote bundles; the end of the process takes those that are left


def _fetch(url: str, files: Mapping[str, FileEntry]) -> Path:
    """A verified copy. Of one that cannot be had or is refused nothing stays: a rollout asks for it again and again."""
    copy = tempfile.TemporaryDirectory(prefix="pigeonhole-bundle-", ignore_cleanup_errors=True)  # no reason to refuse a version
    folder = Path(copy.name)
    try:
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            list(pool.map(lambda name: storage.download(storage.join(url, name), folder / name), [MANIFEST, *files]))
        _verified(url, folder, files)
    except BaseException:
        copy.cleanup()
        raise
    _copies[folder] = copy
    return folder


def release(bundle: Bundle) -> None:
    """Delete the copy of a remote bundle: what was opened from it needs it no more, and on Cloud Run files are memory."""
    if copy := _copies.pop(bundle.folder, None):
        copy.cleanup()


def require_same(bundle: Bundle) -> None:
    """Raises BundleError where the folder is another bundle's by now: of files read since then nobody knows whose they were."""
    if read_manifest(str(bundle.folder)).seal != bundle.manifest.seal:
        raise BundleError(f"{bundle.url}: another bundle took its place while it was opened; open it again")


def read_golden(bundle: Bundle) -> list[Golden]:
    """Raises BundleError for a file that is not a list of probes with one logit a label."""
    few = Annotated[list[Golden], Meta(max_length=100)]
    try:
        probes: list[Golden] = msgspec.json.decode(bundle.path(GOLDEN).read_bytes(), type=few)
    except NOT_AS_TYPED as error:
        raise BundleError(f"{bundle.url}: {GOLDEN}: {error}") from error
    count = len(bundle.manifest.labels)
    if not probes or any(len(logits) != count for probe in probes for logits in probe.logits.values()):
        raise BundleError(f"{bundle.url}: {GOLDEN}: expected at least one probe with {count} logits a precision")
    return probes
