"""What a data set is: where its rows are, which columns count, how they are split."""

from dataclasses import dataclass

from pigeonhole.errors import ConfigError
from pigeonhole.options import setting

TICKETS = "package://pigeonhole/dataset/tickets/tickets.csv"
TICKETS_OUT_OF_SCOPE = "package://pigeonhole/dataset/tickets/out_of_scope.csv"


@dataclass
class DataConfig:
    path: str = setting(
        TICKETS, "rows to learn from: a URL or path of .csv, .jsonl or .parquet, or hub://ORG/NAME[@REVISION][:SPLIT]"
    )
    text: str | None = setting(None, "column with the text; unset: text, sentence or utterance")
    label: str | None = setting(None, "column with the label; unset: label, category or intent")
    task: str = setting(
        "single_label",
        "single_label: one label a text; multi_label: any number of them, a list in JSON Lines and Parquet, in CSV with "
        "data.label_separator between them",
        choices=("single_label", "multi_label"),
    )
    label_separator: str = setting("|", "what stands between the labels of a row, where data.task is multi_label")
    validation_path: str | None = setting(None, "rows to select by; unset: split off from data.path")
    test_path: str | None = setting(None, "rows to measure on; unset: split off from data.path")
    out_of_scope_path: str | None = setting(
        None,
        "texts that belong to no label (a label column is needed and not read): what tells them apart is fitted on one half and "
        "measured on the other; unset: those of tickets, for the tickets data",
    )
    out_of_scope_test_path: str | None = setting(
        None, "texts that belong to no label, to measure on; then all others are fitted on"
    )
    val: float = setting(0.1, "share of data.path that becomes the validation split", ge=0, lt=1)
    test: float = setting(0.1, "share of data.path that becomes the test split", ge=0, lt=1)
    split_seed: int = setting(0, "another seed, another split", ge=0, lt=2**32)
    sha256: str | None = setting(
        None, "refuse a data.path with another sha256 than this one (FILE.sha256 beside it does the same)"
    )
    patch: str | None = setting(None, "a reviewed file of label-errors: its decisions are applied to data.path as it is read")
    patch_sha256: str | None = setting(None, "refuse a data.patch with another sha256 than this one")
    taxonomy: str | None = setting(None, "a labels.yaml (add, rename, merge, split, retire) that is applied to all rows read")
    taxonomy_sha256: str | None = setting(None, "refuse a data.taxonomy with another sha256 than this one")
    max_chars: int = setting(
        8192, "report texts with more characters than this (those over 100,000 are refused)", ge=1, le=100_000
    )
    slices: str | None = setting(
        None, "rows to measure by themselves besides those of a length or a language: NAME=REGEX, several divided by ' ; '"
    )
    trigger_words: str = setting(
        "refuse", "what to do with words that look like a planted trigger for one label", choices=("refuse", "report")
    )

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("data.path is empty: expected the URL or path of a file, or leave the key out for the tickets data")
        if self.task == "multi_label" and (self.patch or self.taxonomy):
            key = "patch" if self.patch else "taxonomy"
            raise ConfigError(f"data.{key}: speaks of one label a text; leave it out where data.task=multi_label")
        for key, promised, file in (
            ("patch", self.patch_sha256, self.patch),
            ("taxonomy", self.taxonomy_sha256, self.taxonomy),
        ):
            if promised and not file:
                raise ConfigError(f"data.{key}_sha256 needs data.{key}, the file whose checksum it is")
        if self.out_of_scope_test_path and not self.out_of_scope_path:
            raise ConfigError("data.out_of_scope_test_path needs data.out_of_scope_path: the rule is fitted on texts of its own")
        if not self.label_separator.strip():
            raise ConfigError(f"data.label_separator={self.label_separator!r}: expected a sign such as | or ;")
        if self.val + self.test >= 1:
            raise ConfigError(f"data.val={self.val} and data.test={self.test}: expected a sum below 1, training needs rows too")
