# The service. Two stages: the first resolves and installs, the second carries only what runs.
FROM python:3.11-slim-bookworm AS install
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /install
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Which build of torch: cpu, or cu130 with CUDA 13. The lock file pins torch's version, that of CUDA's libraries is torch's own choice.
ARG CUDA=cpu
COPY requirements.lock requirements-dev.lock ./
# distributed is for a search on several GPUs, the exporter for spans; both at the versions that the tests run with.
RUN pip install --extra-index-url "https://download.pytorch.org/whl/$CUDA" -r requirements.lock && \
    pip install --constraint requirements-dev.lock distributed opentelemetry-exporter-otlp-proto-http

FROM python:3.11-slim-bookworm
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="flexiffusion-serve" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=$COMMIT
RUN useradd --create-home --uid 10001 flexi
# Triton builds with it, at the first start, what loads compiled kernels onto a GPU.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=install /opt/venv /opt/venv
WORKDIR /app
COPY --chown=flexi registry registry
COPY --chown=flexi engine engine
COPY --chown=flexi evaluation evaluation
COPY --chown=flexi search_jobs search_jobs
COPY --chown=flexi server server
COPY --chown=flexi models/emoji64 models/emoji64
COPY --chown=flexi NOTICE LICENSE ./
# With a root that is read-only, every worker that starts would compile them anew.
RUN python -m compileall -q registry engine evaluation search_jobs server
# Where volumes are mounted: a new one of Docker's takes its owner from here.
RUN mkdir -p .flexi/state .flexi/compile .flexi/keys && chown -R flexi .flexi
USER 10001
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BENTOML_DO_NOT_TRACK=true \
    HF_HUB_OFFLINE=1 \
    FLEXI_COMMIT=$COMMIT
EXPOSE 3000
# Live as soon as the process answers; whether it may get traffic is /readyz, which the orchestrator asks.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:3000/livez', timeout=2)"]
# It listens on every address, so it starts only with FLEXI_API_KEYS (a mounted file) or with FLEXI_ALLOW_ANONYMOUS=true.
# SIGTERM drains: stop it with more time than FLEXI_DRAIN_SECONDS.
CMD ["bentoml", "serve", "server.service:Flexiffusion", "--host", "0.0.0.0", "--port", "3000"]
