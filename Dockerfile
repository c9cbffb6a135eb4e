# Without mounts and heredocs, so that the classic builder, BuildKit, podman and kaniko all build it.
#
#   docker build -t operato/runner:latest .
#
# Without a package index: fill packaging/wheelhouse first (see docs/deploying.md, "Container") and add
# `--build-arg PIP_NO_INDEX=1`. No system packages are installed, so that every image with Python, pip and sh can be
# the base.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# -- build: a virtual environment with the runner and its dependencies, verified by hash and copied as a whole
FROM ${BASE_IMAGE} AS build
ARG PIP_NO_INDEX=
ENV PIP_NO_INDEX=${PIP_NO_INDEX} PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
WORKDIR /build
# Dependencies come first, so that a change of the code does not install them again.
COPY packaging/image.lock packaging/build.lock packaging/wheelhous[e] wheels/
RUN python3 -m venv --without-pip /opt/operato \
    && python3 -m venv --without-pip tools \
    && python3 -m pip --python tools/bin/python install -q --find-links wheels --require-hashes -r wheels/build.lock \
    && python3 -m pip --python /opt/operato/bin/python install -q --find-links wheels --require-hashes \
        -r wheels/image.lock
COPY pyproject.toml README.md LICENSE CHANGELOG.md source/
COPY runner source/runner
COPY actors source/actors
COPY environments source/environments
COPY config source/config
COPY protocol source/protocol
COPY packaging/commit_hook.py source/packaging/
ARG COMMIT=unknown
RUN echo "${COMMIT}" > source/runner/commit.txt
# `--no-deps`: all dependencies are installed, and nothing without a hash is added.
RUN python3 -m pip --python tools/bin/python wheel -q --no-build-isolation --no-deps -w built ./source \
    && python3 -m pip --python /opt/operato/bin/python install -q --no-deps --no-index --find-links built operato-runner

# -- the image
FROM ${BASE_IMAGE}
# A name for the user ID, and folders that it owns: a volume created from the image gets the same owner.
RUN python3 -c "import os; \
    open('/etc/passwd', 'a').write('operato:x:10001:10001:Operato Runner:/data:/sbin/nologin\n'); \
    open('/etc/group', 'a').write('operato:x:10001:\n'); \
    [(os.makedirs(path, 0o750), os.chown(path, 10001, 10001)) for path in ('/data', '/environments')]"
COPY --from=build /opt/operato /opt/operato
COPY modules.yaml /app/modules.yaml
COPY modules /app/modules

# On all addresses, since the loopback address of a container is not reachable. Without a configured key the runner
# creates a secret in the volume /data and prints a token for a day; DECISIONS.md says why ("The generated secret, in a
# container").
ENV PATH=/opt/operato/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/data \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    UV_CACHE_DIR=/environments/cache/uv \
    RATTLER_CACHE_DIR=/environments/cache/rattler \
    OPERATO_HOST=0.0.0.0 \
    OPERATO_JWT_OWN_SECRET=true \
    OPERATO_DATA_DIR=/data \
    OPERATO_VENV_PATH=/environments/venvs \
    OPERATO_CONDA_PATH=/environments/condas \
    OPERATO_READY_FILE=/tmp/operato-ready.json
WORKDIR /app
# As a number, so that Kubernetes can verify that it is not root.
USER 10001:10001
VOLUME ["/data", "/environments"]
EXPOSE 8000 50051
STOPSIGNAL SIGTERM
# The watcher of the runner is process 1. It needs no init: it passes SIGTERM on, and reaps orphans. A test proves it.
ENTRYPOINT ["/opt/operato/bin/operato-runner"]
CMD ["serve"]
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 \
    CMD ["/opt/operato/bin/python", "-m", "runner.health", "/tmp/operato-ready.json"]

ARG VERSION=0.1.0
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="Operato Runner" \
      org.opencontainers.image.description="Runs Python functions remotely: isolated warm workers over REST and gRPC" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
