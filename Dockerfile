# Written for the classic builder too: no mounts, no heredocs. docker, BuildKit, podman and kaniko all build it.
#
#   docker build -t operato/runner:latest .
#
# Without a package index: fill packaging/wheelhouse first (see docs/deploying.md, "Container") and add
# `--build-arg PIP_NO_INDEX=1`. No system packages are installed, so that any image that has Python, pip and sh is a
# base.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# -- build: the runner and what it needs, each file by its hash, in a virtual environment that moves on as a whole
FROM ${BASE_IMAGE} AS build
ARG PIP_NO_INDEX=
ENV PIP_NO_INDEX=${PIP_NO_INDEX} PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
WORKDIR /build
# What is asked for least often comes first: a change of the code does not install the libraries again.
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
# `--no-deps`: all that it needs is there, and nothing comes in that has no hash.
RUN python3 -m pip --python tools/bin/python wheel -q --no-build-isolation --no-deps -w built ./source \
    && python3 -m pip --python /opt/operato/bin/python install -q --no-deps --no-index --find-links built operato-runner

# -- the image
FROM ${BASE_IMAGE}
# A name for the number, and folders that belong to it: a volume that is made from the image begins with their owner.
RUN python3 -c "import os; \
    open('/etc/passwd', 'a').write('operato:x:10001:10001:Operato Runner:/data:/sbin/nologin\n'); \
    open('/etc/group', 'a').write('operato:x:10001:\n'); \
    [(os.makedirs(path, 0o750), os.chown(path, 10001, 10001)) for path in ('/data', '/environments')]"
COPY --from=build /opt/operato /opt/operato
COPY modules.yaml /app/modules.yaml
COPY modules /app/modules

# Beyond loopback, since the loopback of a container can be reached by nobody. Where no key for tokens is configured the
# secret is made in the volume /data, and a token for a day is printed; see "The secret that is made, in a container" in DECISIONS.md.
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
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
VOLUME ["/data", "/environments"]
EXPOSE 8000 50051
STOPSIGNAL SIGTERM
# The runner is process 1. It needs no init beside it: it forwards nothing, hears SIGTERM itself, is the subreaper of
# its workers anyway, and reaps what they leave. A test proves it.
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
