"""The chart's autoscalers, and the figure they go by, in the real PromQL."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.integration.helm import one, rendered, workload
from tests.integration.test_helm_nats import KEDA, LEAST, SCALED, readme_blocks
from tests.servers import need

pytestmark = [pytest.mark.integration]


def test_the_horizontal_pod_autoscaler_has_the_number_of_replicas_to_itself() -> None:
    """The Deployment says none; in by two a minute, out by one in five minutes at most."""
    manifests = rendered(SCALED)
    assert "replicas" not in workload(manifests)["spec"]
    spec = one(manifests, "HorizontalPodAutoscaler")["spec"]
    target = spec["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", workload(manifests)["metadata"]["name"])
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 12)
    age, cpu = spec["metrics"]
    assert age["external"] == {
        "metric": {"name": "bridge_backlog_age_seconds", "selector": {"matchLabels": {"job": "x"}}},
        "target": {"type": "Value", "value": "30"},
    }
    assert cpu["resource"]["target"] == {"type": "AverageValue", "averageValue": "700m"}
    assert spec["behavior"]["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]
    by_cpu = rendered(LEAST, {"autoscaling": {"enabled": True, "targetAgeSeconds": 0, "targetCPU": "1"}})
    assert [each["type"] for each in one(by_cpu, "HorizontalPodAutoscaler")["spec"]["metrics"]] == [
        "Resource"
    ]


def test_keda_has_the_same_numbers() -> None:
    """Never to zero, where nobody would read the sources; the same pace; one's own query if one likes."""
    manifests = rendered(KEDA)
    assert "replicas" not in workload(manifests)["spec"]
    assert not [each for each in manifests if each["kind"] == "HorizontalPodAutoscaler"]
    spec = one(manifests, "ScaledObject")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 8)
    behavior = one(rendered(SCALED), "HorizontalPodAutoscaler")["spec"]["behavior"]
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == behavior
    (trigger,) = spec["triggers"]
    assert trigger["metricType"] == "Value"
    assert trigger["metadata"]["threshold"] == "60"
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    own = one(rendered(KEDA, {"keda.query": 'max(up{job="x"})'}), "ScaledObject")["spec"]["triggers"][0]
    assert own["metadata"]["query"] == 'max(up{job="x"})'


def backlog_age() -> str:
    """The query of release x in namespace lorawan."""
    spec = one(rendered(KEDA), "ScaledObject")["spec"]
    query: str = spec["triggers"][0]["metadata"]["query"]
    return query


def series(name: str, value: float, labels: str = "", pods: str = "ab") -> list[dict[str, str]]:
    """What the replicas *pods* say, all the same."""
    return [
        {
            "series": f'{name}{{namespace="lorawan",job="x",instance="{pod}",{labels}}}',
            "values": f"{value:g}x9",
        }
        for pod in pods
    ]


@pytest.mark.parametrize(
    ("crm", "ops", "expected"),
    [
        ((90, 500, 0), (30, 500, 0), 90),
        ((90, 500, 1), (30, 500, 0), 30),
        ((90, 99, 0), (30, 100, 0), 30),
        ((90, 5, 0), (30, 500, 1), 0),
        ((0, 0, 0), (0, 0, 0), 0),
        (None, None, None),
    ],
    ids=["oldest", "not paused", "not a few", "none of these", "nothing waits", "nothing known"],
)
def test_more_replicas_are_for_what_more_replicas_can_help(
    crm: tuple[int, int, int] | None,
    ops: tuple[int, int, int] | None,
    expected: int | None,
    tmp_path: Path,
) -> None:
    """Age, number waiting and pause of two sinks, in the real PromQL: what is asked of the autoscaler."""
    names = ("bridge_outbox_oldest_age_seconds", "bridge_outbox_rows", "bridge_sink_paused")
    told = [
        each
        for sink, values in (("crm", crm), ("ops", ops))
        for name, value in zip(names, values or (), strict=False)
        for each in series(name, value, f'sink="{sink}"' + (',reason="auth"' if "paused" in name else ""))
    ]
    other = {"series": f'{names[0]}{{namespace="lorawan",job="other",sink="crm"}}', "values": "999x9"}
    samples = [] if expected is None else [{"value": expected, "labels": "{}"}]
    asked = {"expr": backlog_age(), "eval_time": "2m", "exp_samples": samples}
    tests = [{"interval": "1m", "input_series": [*told, other], "promql_expr_test": [asked]}]
    (tmp_path / "test.yaml").write_text(json.dumps({"tests": tests}))
    made = subprocess.run(
        [need("promtool"), "test", "rules", tmp_path / "test.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_the_rule_for_prometheus_adapter_asks_the_same() -> None:
    """The README's, with the adapter's own way to name the series; its name is the one the chart asks for."""
    (rules,) = (each["rules"] for each in readme_blocks() if "external" in each.get("rules", {}))
    (rule,) = rules["external"]
    asked = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="lorawan", job="x"')
    assert " ".join(asked.split()) == backlog_age()
    assert rule["seriesQuery"] == "bridge_outbox_oldest_age_seconds"
    age = one(rendered(SCALED), "HorizontalPodAutoscaler")["spec"]["metrics"][0]
    assert rule["name"]["as"] == age["external"]["metric"]["name"]
