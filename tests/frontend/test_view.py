import pytest
from frontend.view import decision_in_words, percent, plain


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0.0 %"), (0.0004, "< 0.1 %"), (0.5, "50.0 %"), (0.9994, "> 99.9 %"), (1.0, "100.0 %")],
)
def test_an_almost_sure_answer_is_never_rounded_to_certainty(share: float, words: str) -> None:
    assert percent(share) == words


def test_markup_is_escaped_character_by_character() -> None:
    assert plain("**a** <b> [c](d) :red[e] $f$") == r"\*\*a\*\* \<b\> \[c\]\(d\) \:red\[e\] \$f\$"


@pytest.mark.parametrize("address", ["http://a.example", "HTTPS://a.example", "www.a.example", "me@a.example"])
def test_an_address_is_no_link(address: str) -> None:
    assert "\u2060" in plain(address)
    assert plain(address).replace("\u2060", "").replace("\\", "") == address


def test_an_unknown_decision_is_told_as_it_is() -> None:
    assert decision_in_words("accept") == "Sure enough to act on"
    assert decision_in_words("ask_again") == "ask again"
