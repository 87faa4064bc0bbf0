# Batch scoring, on one machine or as every node of a Ray cluster (rayclusters/): without torch, with gs:// URLs and Ray's job server.
# Another base: --build-arg BASE=NAME@sha256:DIGEST, the digest as `docker buildx imagetools inspect NAME` prints it.
ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS builder
RUN pip install --no-cache-dir uv==0.13.8
ENV UV_CACHE_DIR=/cache UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/venv UV_PYTHON=python3.11 UV_PYTHON_DOWNLOADS=never
WORKDIR /build
# The lock first: a change of the code leaves this layer, the large one, as it is.
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/cache uv sync --locked --no-default-groups --group score-cluster --no-install-project
COPY README.md LICENSE ./
COPY configs configs
COPY src src
RUN --mount=type=cache,target=/cache uv sync --locked --no-default-groups --group score-cluster --no-editable

FROM ${BASE}
RUN groupadd --gid 10001 pigeonhole && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin pigeonhole
COPY --from=builder /venv /venv
# KubeRay starts Ray from a login shell, which sets a PATH of its own; this folder is on it.
RUN ln -s /venv/bin/ray /venv/bin/score /usr/local/bin/
# The root may be read-only: Ray keeps its sockets and its spilled blocks in /tmp.
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp RAY_USAGE_STATS_ENABLED=0
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["score"]
