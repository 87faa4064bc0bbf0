from pigeonhole.training.card import _label_line


def test_a_label_of_one_test_row_has_one_row() -> None:
    found: dict[str, object] = {"precision": 1.0, "recall": 0.5, "support": 1}
    assert _label_line("praise", found) == "- `praise`: precision 1.00, recall 0.50 over 1 row"
    assert _label_line("praise", found | {"support": 2}).endswith("over 2 rows")
