"""Who listens where when the whole stack runs on one machine, and which variable carries each address to the page."""

API_PORT = 8080
DRIFT_PORT = 8081
PAGE_PORT = 8501
PROMETHEUS_PORT = 9090

API_VARIABLE = "PIGEONHOLE_API_URL"
DRIFT_VARIABLE = "PIGEONHOLE_DRIFT_URL"
KEY_VARIABLE = "PIGEONHOLE_API_KEY"


def local(port: int) -> str:
    return f"http://127.0.0.1:{port}"
