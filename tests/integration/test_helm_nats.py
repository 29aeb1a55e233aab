"""The chart where the outbox is NATS: a Deployment of replicas, its autoscalers, and what these go by."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from bridge.outbox.jetstream.address import Address, parse
from bridge.outbox.jetstream.link import Link
from bridge.outbox.jetstream.streams import Account, Windows, definitions
from tests.integration import helm
from tests.integration.helm import (
    CHART,
    Manifest,
    environment_of,
    mounted,
    one,
    pod_of,
    rendered,
    template,
    workload,
)
from tests.integration.process import run

pytestmark = [pytest.mark.integration]

README = (CHART / "README.md").read_text()
LEAST: dict[str, Any] = {
    "image": {"repository": "bridge"},
    "outbox": {"nats": {"servers": ["nats://nats:4222"]}},
}
FILE: dict[str, Any] = {"image": {"repository": "bridge"}}
PLAIN, TLS, SCALED, KEDA = (
    CHART / "ci" / f"{name}-values.yaml" for name in ("nats", "nats-tls", "nats-autoscaling", "nats-keda")
)
LOGIN = {"nats-login": {"username": "bridge", "password": "p%40ss%2Fw%3A%23rd"}, "bridge": {}}
MQTT = {"type": "mqtt", "url": "mqtt://broker.example"}


def config_of(manifests: list[Manifest]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(one(manifests, "ConfigMap", "-config")["data"]["bridge.yaml"])
    return found


@pytest.mark.parametrize("values", [PLAIN, TLS], ids=["url", "servers"])
def test_replicas_are_a_deployment_without_a_volume(values: Path) -> None:
    """What is in /data goes with the pod; there is one Service, and no name of a pod is promised."""
    manifests = rendered(values)
    found = workload(manifests)
    assert (found["kind"], found["spec"]["replicas"]) == ("Deployment", 3)
    assert {"name": "data", "emptyDir": {}} in pod_of(manifests)["volumes"]
    assert [each["metadata"]["name"] for each in manifests if each["kind"] == "Service"] == ["x-bridge"]
    assert one(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_a_file_has_one_process_in_a_stateful_set() -> None:
    """Whatever stands in `outbox.nats` beside empty servers; nothing keeps away from itself."""
    manifests = rendered(FILE, {"outbox.nats.stream": "other"})
    assert workload(manifests)["kind"] == "StatefulSet"
    assert not {"affinity", "topologySpreadConstraints"} & set(pod_of(manifests))
    assert "outbox" not in config_of(manifests)


def test_replicas_prefer_different_nodes_and_zones() -> None:
    """Softly: with one node left all of them run there. Both count bridge's pods and not the doctor's."""
    manifests = rendered(LEAST)
    pod = pod_of(manifests)
    (term,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    (spread,) = pod["topologySpreadConstraints"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == (
        "topology.kubernetes.io/zone",
        "ScheduleAnyway",
    )
    labels = workload(manifests)["spec"]["template"]["metadata"]["labels"].items()
    doctor = one(manifests, "Pod", "doctor")["metadata"]["labels"].items()
    for selector in (term["podAffinityTerm"]["labelSelector"], spread["labelSelector"]):
        assert selector["matchLabels"].items() <= labels
        assert not selector["matchLabels"].items() <= doctor


def test_places_chosen_by_hand_take_the_place_of_the_default() -> None:
    """Each of the two by itself."""
    pod = pod_of(rendered(TLS))
    assert list(pod["affinity"]) == ["nodeAffinity"]
    assert [each["topologyKey"] for each in pod["topologySpreadConstraints"]] == ["rack"]
    pod = pod_of(rendered(LEAST, {"topologySpreadConstraints": [{"topologyKey": "rack"}]}))
    assert "podAntiAffinity" in pod["affinity"]


def test_the_address_is_made_of_the_values() -> None:
    """As `bridge` itself reads it; every file it names is one that the pod has."""
    manifests = rendered(TLS)
    address = parse(config_of(manifests)["outbox"])
    assert address.servers == (
        "tls://nats-0.nats.example:4222",
        "tls://192.0.2.40:4223",
        "tls://[2001:db8::7]:4222",
    )
    assert (address.stream, address.replicas, address.lease, address.ack_wait) == ("plants", 3, 10.0, 20.0)
    pod = pod_of(manifests)
    volume = next(each for each in pod["volumes"] if each["name"] == "nats")
    mount = next(each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "nats")
    there = {
        f"{mount['mountPath']}/{item['path']}": (source[kind]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for kind in source
        for item in source[kind]["items"]
    }
    assert there == {
        address.credentials: ("nats-user", "nats.creds"),
        address.ca: ("company-ca", "ca.crt"),
        address.cert: ("nats-client", "tls.crt"),
        address.key: ("nats-client", "tls.key"),
    }


def test_the_ca_may_be_in_a_secret() -> None:
    """Alone, without a client certificate."""
    tls = {"existingSecret": "nats-ca", "caKey": "ca.crt"}
    manifests = rendered(LEAST, {"outbox.nats.tls": tls, "outbox.nats.servers": ["tls://nats:4222"]})
    address = parse(config_of(manifests)["outbox"])
    assert (address.ca, address.cert, address.credentials) == ("/run/secrets/nats/ca.pem", None, None)
    volume = next(each for each in pod_of(manifests)["volumes"] if each["name"] == "nats")
    assert volume["projected"]["sources"] == [
        {"secret": {"name": "nats-ca", "items": [{"key": "ca.crt", "path": "ca.pem"}]}}
    ]


def test_user_and_password_come_from_the_secret_into_the_address() -> None:
    """Through the environment; the ConfigMap has the servers only, and the doctor the same as bridge."""
    manifests = rendered(SCALED)
    assert parse(config_of(manifests)["outbox"]).user is None
    container = pod_of(manifests)["containers"][0]
    address = parse(environment_of(container, LOGIN)["BRIDGE_OUTBOX"])
    assert (address.user, address.password) == ("bridge", "p@ss/w:#rd")
    assert address.servers == ("nats://nats.messaging:4222",)
    doctor = one(manifests, "Pod", "doctor")["spec"]["containers"][0]
    assert doctor["env"] == container["env"]


def test_a_token_stands_alone() -> None:
    """`nats://token@host`."""
    nats = {"servers": ["nats://nats:4222"], "existingSecret": "s", "tokenKey": "t"}
    container = pod_of(rendered(FILE, {"outbox": {"nats": nats}}))["containers"][0]
    outbox = environment_of(container, {"s": {"t": "t0ken"}})["BRIDGE_OUTBOX"]
    assert outbox.startswith("nats://t0ken@nats:4222?")


def test_a_config_of_somebody_elses_gets_the_address_too() -> None:
    """`existingConfigMap` has bridge.yaml; where its outbox is, the chart says."""
    container = pod_of(rendered(KEDA))["containers"][0]
    address = parse(environment_of(container, {"bridge": {}})["BRIDGE_OUTBOX"])
    assert (address.servers, address.replicas) == (("nats://nats.messaging:4222",), 1)


def test_a_changed_address_restarts_the_pods() -> None:
    """It is read at the start only."""

    def stamp(*values: Path | dict[str, Any] | str) -> str:
        found: str = workload(rendered(*values))["spec"]["template"]["metadata"]["annotations"][
            "checksum/start"
        ]
        return found

    before = stamp(LEAST)
    assert stamp(LEAST, {"outbox.nats.options": {"lease": "10s"}}) != before
    assert stamp(LEAST, "config.sinks.crm.type=webhook", "config.sinks.crm.url=https://crm.example") == before


def test_no_two_replicas_have_one_mqtt_client_id() -> None:
    """One that is written down is refused: bridge's own has the pod's name. A file's one may have it."""
    given = {"config.sinks": {"broker": MQTT | {"client_id": "bridge"}}}
    made = template(LEAST, given)
    assert made.returncode != 0
    assert "config.sinks.broker.client_id: replicas with one client id throw each other off" in made.stderr
    assert template(FILE, given).returncode == 0


def test_a_pod_that_goes_does_not_say_offline_for_the_others() -> None:
    """One retained status for all of them would be that of who went last; who asks for it gets it."""
    sinks = config_of(rendered(TLS))["sinks"]
    assert {name: sink.get("status_topic", "default") for name, sink in sinks.items()} == {
        "broker": None,
        "told": "bridge/status",
    }
    assert (
        "status_topic" not in config_of(rendered(FILE, {"config.sinks": {"broker": MQTT}}))["sinks"]["broker"]
    )


def egress(manifests: list[Manifest]) -> list[tuple[int, str]]:
    rules = one(manifests, "NetworkPolicy")["spec"]["egress"]
    return [
        (rule["ports"][0]["port"], ",".join(each["ipBlock"]["cidr"] for each in rule.get("to", [])))
        for rule in rules
        if rule["ports"][0]["port"] != 53
    ]


def test_egress_leads_to_each_nats_server() -> None:
    """To an address where the URL has one, in an `outbox` of several hosts and with a user in it as well."""
    assert egress(rendered(TLS))[-3:] == [(4222, ""), (4223, "192.0.2.40/32"), (4222, "2001:db8::7/128")]
    assert egress(rendered(PLAIN))[-2:] == [(4222, ""), (4333, "203.0.113.9/32")]
    one_user = {"config": {"outbox": "tls://u:p@192.0.2.1:4999"}, "networkPolicy": {"enabled": True}}
    assert egress(rendered(FILE, one_user)) == [(4999, "192.0.2.1/32")]


def readme_blocks() -> list[dict[str, Any]]:
    return [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", README, re.S)]


def test_the_values_of_the_readme_make_replicas(tmp_path: Path) -> None:
    """With the config of its first block; bridge takes what comes of them."""
    first, replicas = (each for each in readme_blocks() if {"image", "outbox"} & set(each))
    manifests = rendered(first | replicas)
    assert workload(manifests)["spec"]["replicas"] == 3
    checked = run("check", "--no-secrets", "-c", str(mounted(manifests, tmp_path / "etc")), cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_the_readme_says_how_much_room_the_servers_reserve() -> None:
    """As many bytes as all streams may have; the chart of NATS lets them have as much as its volume."""
    link = cast(Link, SimpleNamespace(address=Address(("nats://nats:4222",))))
    streams = definitions(link, Windows(dedup_window=1.0, max_size=1000), Account(1 << 20)).values()
    reserved = sum(each["max_bytes"] for each in streams if each["max_bytes"] > 0)
    assert f"reserves {reserved // 1000} times `config.max_size`" in README
    assert f"({4 * reserved // 1000} GiB at its default of 4 GiB)" in README
    (sizes,) = (each["config"]["jetstream"] for each in readme_blocks() if "podTemplate" in each)
    assert int(sizes["fileStore"]["pvc"]["size"].removesuffix("Gi")) > 4 * reserved // 1000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (FILE | {"replicaCount": 2}, "replicaCount: Must be less than or equal to 1"),
        (FILE | {"replicaCount": 2, "config": {"outbox": "sqlite:nats.db"}}, "replicaCount: Must be less"),
        (FILE | {"autoscaling": {"enabled": True}}, "autoscaling.enabled does not match: false"),
        (
            FILE | {"keda": {"enabled": True, "serverAddress": "http://p"}},
            "keda.enabled does not match: false",
        ),
        (
            LEAST
            | {
                "autoscaling": {"enabled": True},
                "keda": {"enabled": True, "serverAddress": "http://prom:9090"},
            },
            "keda.enabled does not match: false",
        ),
        (LEAST | {"keda": {"enabled": True}}, "keda.serverAddress: String length must be greater"),
        (
            LEAST | {"autoscaling": {"enabled": True, "targetAgeSeconds": 0}},
            "needs targetAgeSeconds or targetCPU",
        ),
        (LEAST | {"autoscaling": {"enabled": True, "minReplicas": 0}}, "minReplicas: Must be greater than"),
        (LEAST | {"autoscaling": {"enabled": True, "minReplicas": 9}}, "minReplicas: more than maxReplicas"),
        (LEAST | {"config": {"outbox": "nats://nats:4222"}}, "config.outbox: leave it out"),
        (
            FILE | {"outbox": {"nats": {"servers": ["nats://u:p@nats:4222"]}}},
            "outbox.nats.servers.0: Does not match pattern",
        ),
        (
            FILE | {"outbox": {"nats": {"servers": ["nats://a", "tls://b"]}}},
            "outbox.nats.servers: all nats://, or all tls://",
        ),
        (
            FILE | {"outbox": {"nats": {"servers": ["nats://a"], "credentialsKey": "nats.creds"}}},
            "outbox.nats.existingSecret: String length must be greater",
        ),
        (
            FILE | {"outbox": {"nats": {"servers": ["nats://a"], "usernameKey": "u", "existingSecret": "s"}}},
            "outbox.nats.passwordKey: String length must be greater",
        ),
        (
            FILE | {"outbox": {"nats": {"servers": ["tls://a"], "tls": {"caKey": "ca.crt"}}}},
            "outbox.nats.tls.caKey: say which",
        ),
        (
            FILE | {"outbox": {"nats": {"servers": ["nats://a"], "options": {"leese": "1s"}}}},
            "Additional property leese is not allowed",
        ),
        (
            FILE | {"outbox": {"nats": {"servers": ["nats://a"], "replicas": 6}}},
            "outbox.nats.replicas: Must be less than or equal to 5",
        ),
        (LEAST | {"terminationGracePeriodSeconds": 25}, "PeriodSeconds: Must be greater than or equal to 26"),
        (
            LEAST | {"terminationGracePeriodSeconds": 45, "config": {"shutdown_timeout": "40s"}},
            "needs more than",
        ),
        (LEAST | {"config": {"shutdown_timeout": "1m"}}, "needs more than config.shutdown_timeout and 5 s"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    """With a message that names the key, before anything reaches the cluster."""
    made = template(values)
    assert made.returncode != 0
    assert message in made.stderr, made.stderr


@pytest.mark.parametrize(
    "values",
    [
        LEAST | {"replicaCount": 0},
        LEAST | {"terminationGracePeriodSeconds": 26},
        LEAST | {"terminationGracePeriodSeconds": 46, "config": {"shutdown_timeout": "40s"}},
        LEAST | {"terminationGracePeriodSeconds": 6, "config": {"shutdown_timeout": "500ms"}},
        FILE | {"replicaCount": 2, "config": {"outbox": "tls://nats:4222"}},
    ],
)
def test_values_that_are_just_right_are_taken(values: dict[str, Any]) -> None:
    """The near misses of those above."""
    made = template(values)
    assert made.returncode == 0, made.stderr


def notes(tmp_path: Path, *values: Path | dict[str, Any]) -> str:
    """What `helm install` would print: `helm template` leaves it out, so it is put into a manifest."""
    chart = tmp_path / f"chart{len(list(tmp_path.iterdir()))}"
    shutil.copytree(CHART, chart)
    text = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "_notes.tpl").write_text(f'{{{{ define "notes" }}}}{text}{{{{ end }}}}')
    (chart / "templates" / "told.yaml").write_text(
        'kind: Told\nmetadata: {name: told}\ntext: {{ include "notes" . | toJson }}\n'
    )
    arguments: list[str | Path] = []
    for each in values:
        if isinstance(each, Path):
            arguments += ["-f", each]
        else:
            arguments += [
                argument
                for key, value in each.items()
                for argument in ("--set-json", f"{key}={json.dumps(value)}")
            ]
    made = helm.helm("template", "x", chart, "--namespace", "lorawan", *arguments)
    assert made.returncode == 0, made.stderr
    told: str = one([each for each in yaml.safe_load_all(made.stdout) if each], "Told")["text"]
    return told


def test_the_notes_say_what_was_made(tmp_path: Path) -> None:
    """How many replicas and who sets their number, the servers, no secret; commands that fit."""
    told = notes(tmp_path, FILE)
    assert "StatefulSet x-bridge in lorawan: 1 replica, outbox sqlite:bridge.db." in told
    assert "port-forward x-bridge-0 8080:8080" in told
    assert "WARNING" not in told
    told = notes(tmp_path, PLAIN)
    assert (
        "Deployment x-bridge in lorawan: 3 replicas, outbox nats://nats.messaging:4222,203.0.113.9:4333."
        in told
    )
    assert "exec deploy/x-bridge -- bridge" in told
    told = notes(tmp_path, SCALED)
    assert "3 to 12 replicas, their number set by a HorizontalPodAutoscaler," in told
    told = notes(tmp_path, KEDA)
    assert "2 to 8 replicas, their number set by a ScaledObject," in told
    assert "WARNING: outbox.nats.replicas is 1" in told
    told = notes(tmp_path, FILE, {"config": {"outbox": "nats://u:secret@nats:4222"}})
    assert "outbox nats://nats:4222." in told
    assert "WARNING: one replica" in told
    assert "secret" not in told
