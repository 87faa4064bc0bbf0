"""The web page: Streamlit over HTTP. It imports nothing of the package, so it can run anywhere that the two services answer."""
