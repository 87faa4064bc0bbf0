"""What all pages share: the two services, what the model says of itself, and what is shown when nobody answers."""

import re
from typing import Any, NoReturn

import streamlit as st

from frontend.client import Down, Refused, Service

DECISIONS = {
    "accept": ("Sure enough to act on", "green", ":material/check_circle:"),
    "review": ("Not sure: a person should look", "orange", ":material/visibility:"),
    "out_of_scope": ("Belongs to none of the labels", "gray", ":material/block:"),
}
"""In words, colour, icon; the server's `decision` is the key."""

MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$:~&])")

LINK = re.compile(r"(https?(?=\\?:)|www(?=\\?\.)|(?=\\?@))", re.IGNORECASE)

STYLE = """<style>
textarea, [data-testid='stText'] { unicode-bidi: plaintext; text-align: start; }
[data-testid='stCaptionContainer'] { opacity: 0.8; }
</style>"""
"""A text runs in the direction of its own first letter (Arabic, Hebrew); captions are dark enough to read (WCAG AA, 4.5 : 1)."""


@st.cache_resource(on_release=Service.close)
def api() -> Service:
    return Service.api()


@st.cache_resource(on_release=Service.close)
def drift() -> Service:
    return Service.drift()


@st.cache_data(ttl=10, show_spinner=False)
def _model() -> dict[str, Any]:
    return api().get("/model")


@st.cache_data(ttl=60, show_spinner=False)
def _routes() -> frozenset[str]:
    return api().routes()


def model_or_stop() -> dict[str, Any]:
    """GET /model; a page without it says so, offers to try again and ends here."""
    try:
        return _model()
    except (Down, Refused) as error:
        stop_with(error)


def offers(route: str) -> bool:
    """Whether the service lists a route such as `POST /feedback`; a service that does not answer offers nothing."""
    try:
        return route in _routes()
    except (Down, Refused):
        return False


def stop_with(error: Down | Refused) -> NoReturn:
    show_error(error)
    st.button("Try again", icon=":material/refresh:", type="primary")
    st.stop()


def show_error(error: Down | Refused) -> None:
    if isinstance(error, Down):
        st.error(f"The service is not reachable. {plain(str(error))}", icon=":material/cloud_off:")
        st.caption(
            "Nothing that you wrote is lost: leave this page open and try again. "
            "Whoever runs it: `uv run serve` starts the service, `PIGEONHOLE_API_URL` says where this page looks for it."
        )
    else:
        st.error(f"The service said no: {plain(str(error))}", icon=":material/error:")


def plain(text: str) -> str:
    """Text as text: nothing in it is Markdown or HTML, and no address becomes a link (an invisible joiner breaks it)."""
    return LINK.sub("\\1\u2060", MARKDOWN.sub(r"\\\1", text))


def percent(share: float) -> str:
    """Never rounds an almost sure answer up to 100 %, nor an unlikely one down to 0 %."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %")


def decision_in_words(decision: str) -> str:
    return DECISIONS.get(decision, (decision.replace("_", " "), "gray", ""))[0]
