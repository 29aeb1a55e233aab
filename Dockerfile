# syntax=docker/dockerfile:1
# Build: docker build -t bridge . The base is a tag, because a digest cannot be known before one pulls it; pin it
# with --build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:... Dependencies are those of constraints.txt.
# The same image twice: SOURCE_DATE_EPOCH=$(git log -1 --format=%ct), and --output type=image,rewrite-timestamp=true.
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md constraints.txt ./
COPY src src
COPY rules rules
RUN ["python", "-m", "venv", "/opt/bridge"]
# With SOURCE_DATE_EPOCH what pip compiles is told apart by hashes, not times (PEP 552): the same bytes each time.
RUN ["/opt/bridge/bin/pip", "install", "-c", "constraints.txt", ".[all]"]
RUN ["/opt/bridge/bin/pip", "uninstall", "--yes", "pip"]
RUN ["install", "-d", "-m", "0750", "-o", "10001", "-g", "10001", "/data"]

# Nothing is run in this stage and nothing in it needs a shell or a user database.
FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bridge" \
      org.opencontainers.image.description="Event router for LoRaWAN networks on The Things Stack" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="python:3.13-slim-bookworm"
COPY --from=build /opt/bridge /opt/bridge
COPY --from=build --chown=10001:10001 /data /data
COPY rules /usr/share/bridge/rules
ENV PATH=/opt/bridge/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BRIDGE_CONFIG=/etc/bridge/bridge.yaml \
    HEALTH_URL=http://127.0.0.1:8080/livez
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=15s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(os.environ['HEALTH_URL'], timeout=4)"]
ENTRYPOINT ["bridge"]
CMD ["run"]
