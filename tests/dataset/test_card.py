import struct
from pathlib import Path

import numpy as np

from pigeonhole.dataset.card import MAX_BARS, card_text, plot_characters, plot_labels, write_card
from pigeonhole.dataset.check import Checked, Finding, GivenFile


def _checked(labels: dict[str, int], *suspicious: Finding) -> Checked:
    rows = sum(labels.values())
    return Checked(
        sha256="f" * 64,
        labels=labels,
        splits={"train": rows - 2, "validation": 1, "test": 1},
        chars=np.arange(1, rows + 1),
        suspicious=list(suspicious),
        files={"train": GivenFile("gs://bucket/train.csv", "f" * 64)},
    )


def _size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_card_and_its_plots_are_written_beside_each_other(tmp_path: Path) -> None:
    write_card(f"file://{tmp_path}/cards/mine.md", _checked({"bill": 30, "parcel": 10}))
    assert sorted(path.name for path in (tmp_path / "cards").iterdir()) == ["mine.characters.png", "mine.labels.png", "mine.md"]
    text = (tmp_path / "cards" / "mine.md").read_text()
    assert "![Rows per label](mine.labels.png)" in text
    assert "| bill | 30 | 75.0% |" in text
    assert "| train | gs://bucket/train.csv | 38 |" in text
    assert "| test | split off | 1 |" in text
    assert "f" * 64 in text
    assert "Nothing." in text


def test_findings_stand_in_the_card() -> None:
    text = card_text(_checked({"a": 5, "b": 5}, Finding("near_duplicates", 1200, [2, 9], "texts nearly repeat another text")), {})
    assert "| near duplicates | 1,200 | 2, 9 | texts nearly repeat another text |" in text


def test_label_shows_as_itself() -> None:
    text = card_text(_checked({"a|b <script>\n[x](y)": 5, "=cmd|calc": 5}), {})
    assert r"| a\|b \<script\> \[x\](y) | 5 |" in text


def test_many_labels_are_cut(tmp_path: Path) -> None:
    text = card_text(_checked({f"label{number}": 3 for number in range(250)}), {})
    assert "and 50 more." in text
    assert text.count("| label") == 200 + 1


def test_plots_are_images_for_few_and_many_labels() -> None:
    few = _size(plot_labels({"$a_b$": 3, "标签 👍": 4, "x" * 300: 5}))
    many = _size(plot_labels({f"label{number}": number + 1 for number in range(MAX_BARS + 1)}))
    assert few[0] == many[0] == 840
    assert _size(plot_characters(np.array([1, 10, 100_000]))) == many
    assert _size(plot_characters(np.full(9, 7))) == many
