"""What Prometheus sees of a real bridge: a real scrape, every query of the dashboard, the shipped alerts."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import httpx
import pytest
import yaml

from bridge.receiver import Received, Reply, receive
from tests.integration.process import Bridge, running, until
from tests.recordings import RECORDED
from tests.servers import HOST, free_port, need, wait_until_listening

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(90)]

FILES = Path(__file__).parents[2] / "helm/bridge/files"
UNIT_TESTS = Path(__file__).parents[1] / "data/prometheus/rules_test.yaml"
WITHIN = 40.0  # seconds for a query to have an answer: it needs two scrapes, a second apart

CONFIG = """
sources:
  file: {{type: replay, path: {path}, speed: max}}
sinks:
  crm: {{type: webhook, url: {url}/crm, allow_private_networks: true}}
  down: {{type: webhook, url: "http://127.0.0.1:{closed}/", allow_private_networks: true}}
  wrong: {{type: webhook, url: {url}/wrong, allow_private_networks: true}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""
RULES = """
rules:
  - {name: everything, match: {}, send: [crm]}
  - {name: uplinks, match: {name: as.up.data.forward}, send: [down, wrong]}
  - {name: some, match: {}, sample: 1/2, send: [down]}
"""


def test_the_alerts_fire_when_they_should() -> None:
    """promtool, with a near miss for each."""
    promtool = need("promtool")
    for command in (("check", "rules", FILES / "rules.yaml"), ("test", "rules", UNIT_TESTS)):
        made = subprocess.run([promtool, *command], capture_output=True, text=True, check=False, timeout=60)
        assert made.returncode == 0, made.stdout + made.stderr


def test_every_alert_has_a_test_a_severity_and_words() -> None:
    """An alert without a test would be one nobody has seen fire."""
    tested = {
        each["alertname"]
        for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for each in test["alert_rule_test"]
        if each.get("exp_alerts")
    }
    for rule in shipped_alerts():
        assert rule["alert"] in tested
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}


def shipped_alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FILES / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    """Of every panel, with the dashboard's variables filled in as Grafana would."""
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [
        each.replace("$job", ".*").replace("$instance", ".*").replace("$__rate_interval", "10s")
        for each in found
    ]


@contextmanager
def prometheus(
    folder: Path, *bridges: Bridge, labels: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """The address of a Prometheus that scrapes *bridges* every second and evaluates the shipped alerts.

    Their series get *labels*; job is bridge otherwise.
    """
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FILES / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "bridge",
                "static_configs": [
                    {
                        "targets": [each.url.removeprefix("http://") for each in bridges],
                        "labels": dict(labels),
                    }
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                need("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={HOST}:{port}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_listening(port)
        yield f"http://{HOST}:{port}"
    finally:
        process.kill()
        process.wait()


async def ask(url: str, path: str, **query: str) -> Any:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{url}/api/v1/{path}", params=query)
        assert answer.status_code in (200, 503), answer.text
        return answer.json().get("data", {})


@asynccontextmanager
async def busy_bridge(folder: Path) -> AsyncIterator[Bridge]:
    """A bridge with a sink that takes everything, one that is down and one that refuses."""

    def answer(got: Received) -> Reply | None:
        return Reply(422) if got.path == "/wrong" else None

    async with receive(on_delivery=answer) as receiver:
        config = CONFIG.format(path=RECORDED / "apps.sse", url=receiver.url, closed=free_port())
        (folder / "bridge.yaml").write_text(config)
        (folder / "rules.yaml").write_text(RULES)
        async with running(folder) as bridge:
            await until(bridge, lambda status: status["sinks"]["wrong"]["dead"] > 0)
            yield bridge


async def test_every_query_of_the_dashboard_has_an_answer(tmp_path: Path) -> None:
    """And the alerts are evaluated without an error, and exemplars lead to events that can be traced."""
    asked = queries()
    assert len(asked) > 20
    async with busy_bridge(tmp_path) as bridge:
        with prometheus(tmp_path, bridge) as url:
            with anyio.fail_after(WITHIN):
                missing = asked
                while missing:
                    missing = [
                        each for each in missing if not (await ask(url, "query", query=each)).get("result")
                    ]
                    await anyio.sleep(0.2)
            await alerts_are_evaluated(url)
            await exemplars_lead_to_events(url, bridge)


async def alerts_are_evaluated(url: str) -> None:
    with anyio.fail_after(WITHIN):
        while True:
            groups = (await ask(url, "rules"))["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            if rules and all(rule["health"] == "ok" for rule in rules):
                break
            await anyio.sleep(0.2)
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in shipped_alerts()}


async def exemplars_lead_to_events(url: str, bridge: Bridge) -> None:
    query = "bridge_delivery_latency_seconds_bucket"
    span = {"start": str(time.time() - 600), "end": str(time.time() + 600)}
    with anyio.fail_after(WITHIN):
        while not (found := await ask(url, "query_exemplars", query=query, **span)):
            await anyio.sleep(0.2)
    unique_id = found[0]["exemplars"][0]["labels"]["unique_id"]
    async with httpx.AsyncClient(trust_env=False) as client:
        trace = (await client.get(f"{bridge.url}/api/trace/{unique_id}")).json()
    assert any(each["attempts"] or each["state"] == "delivered" for each in trace["deliveries"])


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """A renamed metric would leave a panel empty for ever; the alerts too."""
    known = set(re.findall(r'"(bridge_[a-z_]+)"', metric_sources()))
    texts = [*queries(), *(rule["expr"] for rule in shipped_alerts())]
    for text in texts:
        for name in re.findall(r"bridge_[a-z_]+", text):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            assert base in known or base.removesuffix("_total") in known, name


def metric_sources() -> str:
    folder = Path(__file__).parents[2] / "src/bridge"
    return "".join((folder / name).read_text() for name in ("metrics.py", "ops/__init__.py"))
