# The drift service, without torch: it reads the prediction log and the bundle by URL, and writes its reports by URL.
# Another base: --build-arg BASE=NAME@sha256:DIGEST, the digest as `docker buildx imagetools inspect NAME` prints it.
ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS builder
RUN pip install --no-cache-dir uv==0.13.8
ENV UV_CACHE_DIR=/cache UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/venv UV_PYTHON=python3.11 UV_PYTHON_DOWNLOADS=never
WORKDIR /build
# The lock first: a change of the code leaves this layer, the large one, as it is.
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/cache uv sync --locked --no-default-groups --group drift --no-install-project
COPY README.md LICENSE ./
COPY configs configs
COPY src src
RUN --mount=type=cache,target=/cache uv sync --locked --no-default-groups --group drift --no-editable

FROM ${BASE}
RUN groupadd --gid 10001 pigeonhole && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin pigeonhole
COPY --from=builder /venv /venv
# The root may be read-only: reports are drawn in /tmp and kept by URL.
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp HOST=0.0.0.0 PORT=8080
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["drift"]
