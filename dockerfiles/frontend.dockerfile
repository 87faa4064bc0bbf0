# The page: Streamlit over HTTP, without a line of the package. PIGEONHOLE_API_URL and PIGEONHOLE_DRIFT_URL say to whom it speaks.
# Another base: --build-arg BASE=NAME@sha256:DIGEST, the digest as `docker buildx imagetools inspect NAME` prints it.
ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS builder
RUN pip install --no-cache-dir uv==0.13.8
ENV UV_CACHE_DIR=/cache UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/venv UV_PYTHON=python3.11 UV_PYTHON_DOWNLOADS=never
WORKDIR /build
# Only the group: the page imports nothing of the package, so neither do its dependencies go in.
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/cache uv sync --locked --only-group frontend

FROM ${BASE}
RUN groupadd --gid 10001 pigeonhole && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin pigeonhole
COPY --from=builder /venv /venv
COPY frontend /app/frontend
# The root may be read-only: uploads stay in memory, Streamlit's own files go to /tmp.
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp HOST=0.0.0.0 PORT=8080
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["python", "-m", "frontend"]
