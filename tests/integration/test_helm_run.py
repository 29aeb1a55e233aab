"""What the chart renders, run: replicas share the work, and what they tell Prometheus is counted once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import anyio
import pytest

from tests.integration.helm import CHART, one
from tests.integration.pods import GATEWAYS, RIGHTS, site
from tests.integration.process import run
from tests.integration.test_helm_scaling import backlog_age
from tests.integration.test_prometheus import ask, prometheus, queries, shipped_alerts
from tests.servers import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

JOB = {"job": "x", "namespace": "lorawan"}


@pytest.mark.timeout(150)
async def test_three_pods_of_the_rendered_deployment_share_the_work(tmp_path: Path) -> None:
    """Each by its own name, to NATS and to the broker, however long the release's; who ends hands over."""
    async with site(tmp_path) as found:
        pods = found.pods
        await found.all_arrive()
        doctor = one(found.manifests, "Pod", "doctor")["spec"]["containers"][0]
        arguments = [str(pods.config) if "/etc/" in each else each for each in doctor["args"]]
        told = run(*arguments, "--json", cwd=tmp_path, env=pods.environment(doctor))
        findings = [json.loads(line) for line in told.stdout.splitlines()]
        verdicts = {(each["about"], each["check"]): each["verdict"] for each in findings}
        assert verdicts["outbox", "streams"] == "ok", findings
        assert verdicts["sink broker", "login"] == "ok", findings
        assert pods.terminate(pods.names[1]) == 0
        await pods.until_divided()
        await found.all_arrive()
        assert await pods.figures("bridge_source_connected") == [1, 1]
        await pods.until_empty()
    ids = set(re.findall(r"as (bridge-\S+-broker) ", found.broker.log))
    assert ids == {f"bridge-{name}-broker" for name in pods.names}
    assert "already connected" not in found.broker.log
    assert "Permissions Violation" not in found.server.log
    assert all(f"`{each}`" in (CHART / "README.md").read_text() for each in RIGHTS)


def panel(title: str, kind: str) -> str:
    """What the panel of the dashboard asks, its variables filled in."""
    panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
    (wanted,) = (each for each in panels if (each["title"], each["type"]) == (title, kind))
    expr: str = wanted["targets"][0]["expr"]
    return expr.replace("$job", ".*").replace("$instance", ".*")


async def until_told(url: str, query: str, expected: float) -> None:
    """Until Prometheus answers *query* with that one figure."""
    seen: object = None
    with anyio.move_on_after(30):
        while True:
            result = (await ask(url, "query", query=query))["result"]
            seen = [float(each["value"][1]) for each in result]
            if seen == [expected]:
                return
            await anyio.sleep(0.2)
    raise AssertionError((query, seen, expected))


@pytest.mark.timeout(150)
async def test_what_replicas_tell_prometheus_is_counted_once(tmp_path: Path) -> None:
    """As many wait as there are, not three times as many; who has no part of something is no trouble."""
    down = {"type": "webhook", "url": f"http://127.0.0.1:{free_port()}/", "allow_private_networks": True}
    async with site(tmp_path, {"down": down}) as found:
        await found.all_arrive()
        with prometheus(tmp_path, *found.pods.running.values(), labels=JOB) as url:
            await until_told(url, panel("Waiting", "stat"), len(GATEWAYS))
            await until_told(url, panel("Sources connected", "stat"), 1)
            await until_told(url, panel("Replicas", "timeseries"), 3)
            age = backlog_age().replace(">= 100", f">= {len(GATEWAYS)}")
            (answer,) = (await ask(url, "query", query=age))["result"]
            assert 0 < float(answer["value"][1]) < 150
            await until_told(url, backlog_age(), 0)
            for query in queries():
                assert (await ask(url, "query", query=query)).get("result") is not None, query
            quiet = ("BridgeSourceDown", "BridgeConfigDiffers", "BridgeDiskFull")
            for rule in shipped_alerts():
                if rule["alert"] in quiet:
                    assert (await ask(url, "query", query=rule["expr"]))["result"] == [], rule["alert"]
