"""`uv run python -m streamlit run frontend/app.py`: the pages, and which model answers behind them."""

from pathlib import Path

import streamlit as st

from frontend import view
from frontend.client import Down, Refused
from frontend.login import require_login

FOLDER = Path(__file__).parent


def main() -> None:
    st.set_page_config(page_title="Pigeonhole", page_icon=str(FOLDER / "icon.svg"), layout="centered")
    st.html(view.STYLE)
    st.logo(str(FOLDER / "logo.svg"), size="large", icon_image=str(FOLDER / "icon.svg"))
    require_login()
    chosen = st.navigation(
        [
            st.Page("screens/classify.py", title="Classify", icon=":material/label:", default=True),
            st.Page("screens/batch.py", title="Batch", icon=":material/table_rows:"),
            st.Page("screens/review.py", title="Review", icon=":material/rate_review:"),
            st.Page("screens/model.py", title="Model", icon=":material/model_training:"),
            st.Page("screens/traffic.py", title="Traffic and drift", icon=":material/monitoring:"),
        ]
    )
    with st.sidebar:
        _who_answers()
    chosen.run()


def _who_answers() -> None:
    try:
        ready = view.api().get("/ready")
    except Down:
        st.badge("service not reachable", icon=":material/cloud_off:", color="red")
    except Refused:
        st.badge("service says no", icon=":material/block:", color="red")
    else:
        st.badge(f"{ready['model']} answers", icon=":material/check:", color="green")
        st.caption(f"version {ready['model_version']}")


main()
