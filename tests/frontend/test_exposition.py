import pytest
from frontend.exposition import Exposition

TEXT = """
# HELP x_seconds Seconds
# TYPE x_seconds histogram
x_seconds_bucket{le="1.0",route="/a"} 2.0
x_seconds_bucket{le="2.0",route="/a"} 6.0
x_seconds_bucket{le="+Inf",route="/a"} 8.0
x_seconds_bucket{le="1.0",route="/b"} 0.0
x_seconds_bucket{le="2.0",route="/b"} 0.0
x_seconds_bucket{le="+Inf",route="/b"} 0.0
x_total{label="a \\"quoted\\" \\\\ one, with } and\\nline",code="200"} 3
x_total{label="b",code="500"} 4.5e+01
up 1 1700000000
"""


@pytest.fixture
def exposition() -> Exposition:
    return Exposition.parse(TEXT)


def test_samples_are_summed_over_the_labels_that_are_not_asked_for(exposition: Exposition) -> None:
    assert exposition.total("x_total") == 48
    assert exposition.total("x_total", code="500") == 45
    assert exposition.total("up") == 1
    assert exposition.total("absent") == 0


def test_a_label_value_comes_back_unescaped(exposition: Exposition) -> None:
    assert exposition.by("x_total", "label") == {'a "quoted" \\ one, with } and\nline': 3, "b": 45}


def test_a_percentile_is_linear_within_its_bucket(exposition: Exposition) -> None:
    assert exposition.percentile("x_seconds", 0.5, route="/a") == pytest.approx(1.5)
    assert exposition.percentile("x_seconds", 0.125, route="/a") == pytest.approx(0.5)


def test_a_percentile_beyond_the_last_bound_is_that_bound(exposition: Exposition) -> None:
    assert exposition.percentile("x_seconds", 0.99, route="/a") == 2.0


def test_a_histogram_without_observations_has_no_percentile(exposition: Exposition) -> None:
    assert exposition.percentile("x_seconds", 0.5, route="/b") is None
    assert exposition.percentile("absent", 0.5) is None


def test_what_ends_a_line_elsewhere_ends_none_of_prometheus() -> None:
    found = Exposition.parse('x_total{label="a\u2028b\u0085c"} 3\n')
    assert found.by("x_total", "label") == {"a\u2028b\u0085c": 3}


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="Prometheus"):
        Exposition.parse("<html>")
