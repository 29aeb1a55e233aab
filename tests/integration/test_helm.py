"""The chart with the real helm: lint, every value set and manifest, the config bridge gets, refusals."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.integration import helm
from tests.integration.custom_resources import CUSTOM
from tests.integration.helm import (
    CHART,
    ROOT,
    VALUE_SETS,
    Manifest,
    mounted,
    one,
    pod_of,
    rendered,
    template,
    workload,
)
from tests.integration.process import announced, run, start, until
from tests.servers import free_port

pytestmark = [pytest.mark.integration]

LEAST = {"image": {"repository": "bridge"}}
SETS = pytest.mark.parametrize("values", VALUE_SETS, ids=lambda path: path.stem.removesuffix("-values"))
CONFIGURED = [path for path in VALUE_SETS if "existingConfigMap" not in yaml.safe_load(path.read_text())]


def test_the_schema_of_values_is_what_the_models_say() -> None:
    """values.schema.json is generated; a new key of bridge.yaml is refused by Helm until it is made anew."""
    spec = importlib.util.spec_from_file_location("helm_schema", ROOT / "helm" / "schema.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert (CHART / "values.schema.json").read_text() == made.text(), "run: python helm/schema.py"


def test_every_value_has_a_place_in_the_schema() -> None:
    """values.yaml and the schema name the same keys, so that none is silently without a check."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert set(values) == set(properties) - {"global"}


@SETS
def test_helm_lint_finds_nothing(values: Path) -> None:
    """Warnings are failures."""
    made = helm.helm("lint", "--strict", CHART, "-f", values)
    assert made.returncode == 0, made.stdout


@SETS
def test_every_manifest_is_one_kubernetes_takes(values: Path) -> None:
    """By the schemas of Kubernetes, no unknown field; custom resources by their documented shape."""
    manifests = rendered(values)
    for manifest in manifests:
        if manifest["kind"] in CUSTOM:
            version, schema = CUSTOM[manifest["kind"]]
            assert manifest["apiVersion"] == version
            jsonschema.validate(manifest["spec"], schema)
        else:
            kubernetes_validate.validate(manifest, helm.KUBERNETES, strict=True)
        assert manifest["metadata"].get("namespace", "lorawan") == "lorawan"
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(names) == len(set(names))


def test_a_manifest_with_a_wrong_field_is_noticed() -> None:
    """The check above is one: a field that Kubernetes does not know, and one of the wrong type."""
    service = one(rendered(LEAST), "Service", "headless")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service | {"spce": {}}, helm.KUBERNETES, strict=True)
    service["spec"]["ports"][0]["port"] = "metrics"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, helm.KUBERNETES, strict=True)


@pytest.mark.parametrize("values", CONFIGURED, ids=lambda path: path.stem.removesuffix("-values"))
def test_the_rendered_config_is_one_that_bridge_runs(values: Path, tmp_path: Path) -> None:
    """`bridge check` takes what the pod gets, in the folder the kubelet makes of it."""
    config = mounted(rendered(values), tmp_path / "etc")
    checked = run("check", "--no-secrets", "-c", str(config), cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_the_three_users_are_among_the_value_sets() -> None:
    """At least twelve sets, those of the three users with rules that are really loaded."""
    assert len(VALUE_SETS) >= 12
    assert {"mqtt-integrator-values", "alerting-values", "kubernetes-platform-values"} <= {
        path.stem for path in VALUE_SETS
    }


def test_values_reach_bridge_as_they_were_written(tmp_path: Path) -> None:
    """Templates, large numbers, comparison signs and names that look like something else."""
    config = mounted(rendered(CHART / "ci/mqtt-integrator-values.yaml"), tmp_path / "etc")
    rule = yaml.safe_load((config.parent / "rules/meters.yaml").read_text())["rules"][0]
    assert rule["match"]["data"]["uplink_message"]["f_port"] == [1000000, {"numeric": [">=", 1]}]
    config = mounted(rendered(CHART / "ci/alerting-values.yaml"), tmp_path / "alerting")
    text = yaml.safe_load(config.read_text())["sinks"]["ops"]["text"]
    assert text == ":satellite: {{ summary }} <https://console.example/?a=1&b=2>"
    assert "# as written, comments and all" in (config.parent / "rules/own.yaml").read_text()
    config = mounted(rendered(CHART / "ci/restart-values.yaml"), tmp_path / "restart")
    identifiers = yaml.safe_load(config.read_text())["sources"]["lab"]["identifiers"]
    assert identifiers == [{"application": "off"}, {"device": "0123/1e5"}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"image.repository: String length must be greater than or equal to 1"),
        (LEAST | {"replicaCount": 2}, r"replicaCount: Must be less than or equal to 1"),
        (LEAST | {"replicas": 1}, r"Additional property replicas is not allowed"),
        (
            LEAST | {"image": {"repository": "b", "pullPolicy": "Often"}},
            r"image.pullPolicy: .*must be one of",
        ),
        (
            LEAST | {"config": {"sinks": {"crm": {"type": "webhook", "url": "https://a", "timout": "1s"}}}},
            r"config.sinks.crm: Additional property timout is not allowed",
        ),
        (
            LEAST | {"config": {"sinks": {"crm": {"type": "webhok", "url": "https://a"}}}},
            r"config.sinks.crm.type: .*must be one of the following: .*\"webhook\"",
        ),
        (LEAST | {"config": {"sinks": {"crm": {"type": "mqtt"}}}}, r"config.sinks.crm: url is required"),
        (
            LEAST
            | {"config": {"sinks": {"ops": {"type": "slack", "webhook_url": "https://hooks.example/T0/B0"}}}},
            r"config.sinks.ops.webhook_url: Does not match pattern '\^\\\$\\{\(env\|file\)",
        ),
        (
            LEAST
            | {
                "config": {
                    "sources": {
                        "a": {
                            "type": "tts",
                            "url": "u",
                            "api_key": "${env:K}",
                            "identifiers": [{"application": 83}],
                        }
                    }
                }
            },
            r"identifiers.0.application: Invalid type. Expected: .*string",
        ),
        (LEAST | {"config": {"dedup_window": 48}}, r"config.dedup_window: Invalid type"),
        (LEAST | {"shippedRules": ["upinks"]}, r"shippedRules.0: .*must be one of .*\"uplinks\""),
        (LEAST | {"rules": {"a.yaml": {"rules": [{"nam": "x"}]}}}, r"Additional property nam is not allowed"),
        (
            LEAST | {"rules": {"a.yml": {"rules": [{"name": "x", "match": {"dev_addr": 26}, "send": "a"}]}}},
            r"dev_addr",
        ),
        (LEAST | {"reload": "sighup"}, r"reload: .*must be one of .*\"watch\", \"restart\""),
        (LEAST | {"persistence": {"size": "plenty"}}, r"persistence.size: Does not match pattern"),
        (LEAST | {"ingress": {"enabled": True}}, r"bridge listens on loopback only; set config.admin"),
        (LEAST | {"config": {"admin": {"listen": "0.0.0.0:8080"}}}, r"needs config.admin.token"),
        (LEAST | {"existingConfigMap": "a", "shippedRules": ["uplinks"]}, r"it brings the rules too"),
    ],
)
def test_wrong_values_are_refused_with_a_message_that_names_the_key(
    values: dict[str, Any], message: str
) -> None:
    """Before anything reaches the cluster."""
    made = template(values)
    assert made.returncode != 0
    assert re.search(message, made.stderr), made.stderr


def test_a_refused_value_is_not_repeated() -> None:
    """Somebody put the secret itself where a reference belongs: it must not end up in a CI log."""
    made = template(LEAST | {"config": {"admin": {"token": "TOPSECRET"}}})
    assert made.returncode != 0
    assert "TOPSECRET" not in made.stdout + made.stderr


@SETS
def test_pods_run_under_the_restricted_profile(values: Path) -> None:
    """Pod Security Standards, restricted; root file system read-only; no service links, no API token."""
    manifests = rendered(values)
    pods = [pod_of(manifests)] + [each["spec"] for each in manifests if each["kind"] == "Pod"]
    for pod in pods:
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        container = pod["containers"][0]["securityContext"]
        assert container["readOnlyRootFilesystem"] is True
        assert container["allowPrivilegeEscalation"] is False
        assert container["capabilities"] == {"drop": ["ALL"]}
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
        assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
        mounts = {
            each["mountPath"]: each.get("readOnly", False) for each in pod["containers"][0]["volumeMounts"]
        }
        assert [path for path, read_only in mounts.items() if not read_only and path != "/etc/company"] == [
            "/data",
            "/tmp",
        ]


def test_the_default_outbox_has_one_copy_and_a_volume_that_stays() -> None:
    """A StatefulSet with a claim, kept when the release goes; a disruption takes at most one."""
    manifests = rendered(LEAST)
    spec = one(manifests, "StatefulSet")["spec"]
    assert spec["replicas"] == 1
    assert spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "8Gi"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert one(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    headless = one(manifests, "Service", "headless")
    assert spec["serviceName"] == headless["metadata"]["name"]
    assert headless["spec"]["clusterIP"] == "None"


def test_probes_ask_the_metrics_address() -> None:
    """The pod's own address, without a token, whatever the port is."""
    manifests = rendered(CHART / "ci/page-values.yaml")
    container = pod_of(manifests)["containers"][0]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"metrics": 9091, "admin": 8081}
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert paths["liveness"] == {"path": "/livez", "port": "metrics"}
    assert paths["readiness"] == {"path": "/readyz", "port": "metrics"}
    assert paths["startup"] == {"path": "/livez", "port": "metrics"}
    services = {each["port"] for each in one(manifests, "Service", "headless")["spec"]["ports"]}
    assert services == {80, 81}


def config_of(manifests: list[Manifest]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(one(manifests, "ConfigMap", "-config")["data"]["bridge.yaml"])
    return found


def test_the_ingress_leads_to_the_admin_port_and_bridge_knows_its_name() -> None:
    """A Host name bridge does not know gets 421; the names of the Service are known too."""
    manifests = rendered(CHART / "ci/kubernetes-platform-values.yaml")
    backend = one(manifests, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "x-bridge", "port": {"name": "admin"}}
    hosts = config_of(manifests)["admin"]["hosts"]
    assert hosts == ["x-bridge", "x-bridge.lorawan", "x-bridge.lorawan.svc", "bridge.example"]


def egress(manifests: list[Manifest]) -> list[tuple[int, str]]:
    rules = one(manifests, "NetworkPolicy")["spec"]["egress"]
    return [
        (port["port"], ",".join(each["ipBlock"]["cidr"] for each in rule.get("to", [])))
        for rule in rules
        for port in rule["ports"]
    ]


def test_egress_is_dns_and_what_the_urls_need() -> None:
    """By port; to an address only where the URL has one; a proxy stands for the sink behind it."""
    assert egress(rendered(CHART / "ci/kubernetes-platform-values.yaml")) == [
        (53, ""),
        (53, ""),
        (8884, "10.20.0.5/32"),
        (443, "10.20.0.5/32"),
        (1883, "10.20.0.9/32"),
        (3128, ""),
    ]
    assert egress(rendered(CHART / "ci/network-policy-values.yaml")) == [
        (53, ""),
        (53, ""),
        (8885, "2001:db8::5/128"),
        (1884, ""),
        (80, ""),
        (9884, "192.0.2.7/32"),
        (443, ""),
        (9443, "203.0.113.0/24"),
    ]


def test_the_policy_lets_in_scrapes_and_the_page_and_covers_helm_test() -> None:
    """The doctor's pod needs the same ways out as bridge, and no Service may lead to it."""
    manifests = rendered(CHART / "ci/kubernetes-platform-values.yaml")
    policy = one(manifests, "NetworkPolicy")["spec"]
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == ["metrics", "admin"]
    doctor = one(manifests, "Pod", "doctor")
    labels = doctor["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert not one(manifests, "Service", "headless")["spec"]["selector"].items() <= labels.items()


def test_helm_test_runs_doctor_beside_bridge() -> None:
    """With the same config and secrets, and a /data of its own: the outbox is another's."""
    manifests = rendered(CHART / "ci/mqtt-integrator-values.yaml")
    doctor = one(manifests, "Pod", "doctor")
    assert doctor["metadata"]["annotations"]["helm.sh/hook"] == "test"
    container, bridge = doctor["spec"]["containers"][0], pod_of(manifests)["containers"][0]
    assert container["args"] == ["doctor", "-c", "/etc/bridge/bridge.yaml"]
    assert (container["env"], container["envFrom"]) == (bridge["env"], bridge["envFrom"])
    volumes = {each["name"]: each for each in doctor["spec"]["volumes"]}
    assert volumes["data"]["emptyDir"] == {}


def test_each_secret_is_a_variable_and_a_file() -> None:
    """From one Secret, from single keys of others, or from values; never in the ConfigMap."""
    pod = pod_of(rendered(CHART / "ci/alerting-values.yaml"))
    env = {each["name"]: each.get("valueFrom") for each in pod["containers"][0]["env"]}
    assert env["SLACK_URL"] == {"secretKeyRef": {"name": "slack", "key": "webhook"}}
    secrets = next(each for each in pod["volumes"] if each["name"] == "secrets")["projected"]["sources"]
    assert {"secret": {"name": "slack", "items": [{"key": "webhook", "path": "SLACK_URL"}]}} in secrets
    manifests = rendered(CHART / "ci/restart-values.yaml")
    assert one(manifests, "Secret")["data"]["ADMIN_TOKEN"] == "ZXhhbXBsZQ=="
    assert pod_of(manifests)["containers"][0]["envFrom"] == [{"secretRef": {"name": "x-bridge"}}]
    pod = pod_of(rendered(CHART / "ci/mqtt-integrator-values.yaml"))
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "bridge"}}]
    assert {"name": "secrets", "mountPath": "/run/secrets/bridge", "readOnly": True} in pod["containers"][0][
        "volumeMounts"
    ]


def stamps(*values: Path | dict[str, Any] | str) -> dict[str, str]:
    found: dict[str, str] = workload(rendered(*values))["spec"]["template"]["metadata"]["annotations"]
    return found


def test_a_changed_config_restarts_the_pod_only_where_that_is_wanted_or_needed() -> None:
    """watch: only for the keys that are read at the start; restart: for every change of config and rules."""
    base = CHART / "ci/shard-values.yaml"
    before = stamps(base)
    assert stamps(base, "config.sinks.webhook.timeout=5s") == before
    assert stamps(base, "config.max_size=8GiB") != before
    assert stamps(base, "config.admin.metrics_listen=0.0.0.0:9999") != before
    before = stamps(base, "reload=restart")
    assert stamps(base, "reload=restart", "config.sinks.webhook.timeout=5s") != before
    assert stamps(base, "reload=restart", {"rules": {"a.yaml": {"rules": []}}}) != before
    lab = CHART / "ci/restart-values.yaml"
    assert stamps(lab) != stamps(lab, "secrets.ADMIN_TOKEN=other")
    watching = pod_of(rendered(base))["containers"][0]["args"]
    assert watching == ["run", "-c", "/etc/bridge/bridge.yaml", "--watch"]
    assert "--watch" not in pod_of(rendered(base, "reload=restart"))["containers"][0]["args"]


def test_monitoring_selects_one_service_and_the_shipped_alerts() -> None:
    """Two Services lead to the pod: scraping both would count everything twice."""
    manifests = rendered(CHART / "ci/kubernetes-platform-values.yaml")
    selector = one(manifests, "ServiceMonitor")["spec"]["selector"]
    absent = [each["key"] for each in selector["matchExpressions"]]
    services = [each for each in manifests if each["kind"] == "Service"]
    chosen = [
        each["metadata"]["name"]
        for each in services
        if selector["matchLabels"].items() <= each["metadata"]["labels"].items()
        and not set(absent) & set(each["metadata"]["labels"])
    ]
    assert chosen == ["x-bridge"]
    groups = one(manifests, "PrometheusRule")["spec"]["groups"]
    names = [rule["alert"] for group in groups for rule in group["rules"]]
    assert "BridgeSourceSilent" in names
    assert "BridgeAbsent" in names
    assert "BridgeConfigDiffers" not in names
    dashboard = one(manifests, "ConfigMap", "dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["x-bridge.json"])["title"] == "bridge"


@pytest.mark.anyio
@pytest.mark.timeout(60)
async def test_a_changed_config_map_is_loaded_while_bridge_runs(tmp_path: Path) -> None:
    """The kubelet swaps `..data`; `--watch` sees it, and new rules are there without a restart."""
    values = CHART / "ci/restart-values.yaml"
    metrics = f"127.0.0.1:{free_port()}"
    quiet = {"config.sources": {}, "config.admin": {"listen": "127.0.0.1:0", "metrics_listen": metrics}}
    etc = tmp_path / "etc"
    mounted(rendered(values, quiet), etc)
    (tmp_path / "bridge.yaml").symlink_to(etc / "bridge.yaml")
    bridge = start(tmp_path, arguments=["-c", str(etc / "bridge.yaml"), "--watch"])
    try:
        await announced(bridge)
        before = (await bridge.status())["config_hash"]
        mounted(rendered(values, quiet, "config.sinks.log.timeout=3s"), etc)
        await until(bridge, lambda status: status["config_hash"] != before)
    finally:
        bridge.kill()


def test_a_release_can_be_called_anything(tmp_path: Path) -> None:
    """Long names are cut so that the pod's host name and its labels stay within 63 characters."""
    made = template(LEAST, name="a" * 53)
    assert made.returncode == 0
    names = [each["metadata"]["name"] for each in yaml.safe_load_all(made.stdout) if each]
    assert max(map(len, names)) <= 63
