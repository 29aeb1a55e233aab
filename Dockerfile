# syntax=docker/dockerfile:1
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY src src
COPY rules rules
RUN python -m venv /opt/bridge \
 && /opt/bridge/bin/pip install --no-cache-dir --no-compile ".[fast]"

FROM python:3.13-slim
LABEL org.opencontainers.image.title="bridge" \
      org.opencontainers.image.description="Event router for LoRaWAN networks on The Things Stack" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin bridge \
 && install -d -o bridge -g bridge /data
COPY --from=build /opt/bridge /opt/bridge
ENV PATH=/opt/bridge/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
ENTRYPOINT ["bridge"]
CMD ["run", "-c", "/etc/bridge/bridge.yaml"]
