"""Write helm/bridge/values.schema.json: what Helm checks before it renders anything.

`config` and `rules` come from the models bridge itself reads its files with (`bridge schema`); the rest is
here. `python helm/schema.py` writes the file; tests/integration/test_helm.py fails while it is stale.

Helm knows JSON Schema draft 7 and says every branch of a `oneOf` that did not fit. So tagged unions become
`if type is ... then ...`, and the message names the one key that is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bridge.outbox.jetstream.address import DURATIONS
from bridge.schema import WORD, config_schema, rules_schema

Schema = dict[str, Any]

PLACE = Path(__file__).parent / "bridge" / "values.schema.json"
SHIPPED = sorted(path.stem for path in (Path(__file__).parent.parent / "rules").glob("*.yaml"))
REFERENCE = r"^\$\{(env|file):[^{}]+\}$"
URL: Schema = {
    "type": ["string", "null"],
    "pattern": rf"{REFERENCE}|^https?://[^@/?#]+/?$",
    "description": "A proxy: with a password in it, as ${env:NAME} or ${file:path}.",
}
NATS_SERVER: Schema = {
    "type": "string",
    "pattern": r"^(nats|tls)://[^@/?#,]+/?$",
    "description": "nats://host:4222 or tls://host:4222; user and password are in existingSecret.",
}
TRIGGER_KINDS = ["TriggerAuthentication", "ClusterTriggerAuthentication"]
ENVIRONMENT_NAME = "^[A-Za-z_][A-Za-z0-9_]*$"

TEXT: Schema = {"type": "string"}
FILLED: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ONE_OR_MORE: Schema = {"type": "integer", "minimum": 1}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
LIST: Schema = {"type": "array"}
TEXTS: Schema = {"type": "array", "items": TEXT}
MAPS: Schema = {"type": "array", "items": {"type": "object"}}
MAP: Schema = {"type": "object"}
WORDS: Schema = {"type": "object", "additionalProperties": TEXT}
SIZE: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"}
OPTION_DURATION = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
NUMBER_OR_PERCENT: Schema = {"type": ["integer", "string"], "pattern": "^[0-9]+%?$"}


def section(**properties: Schema) -> Schema:
    """A map with these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def required(schema: Schema, *keys: str) -> Schema:
    return schema | {"required": list(keys)}


def values_schema() -> Schema:
    """Of values.yaml."""
    config, definitions = embedded(config_schema(), "config.")
    rules, rule_definitions = embedded(rules_schema(), "rules.")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "values of the chart bridge",
        **required(section(**top(config, rules)), "image"),
        "allOf": conditions(),
        "definitions": definitions | rule_definitions,
    }


def within(schema: Schema, *path: str) -> Schema:
    """*schema* of what stands at *path*, which must be there."""
    for key in reversed(path):
        schema = {"properties": {key: schema}, "required": [key]}
    return schema


def conditions() -> list[Schema]:
    """What one value asks of another."""
    nats = [
        within({"minItems": 1}, "outbox", "nats", "servers"),
        within({"pattern": "^(nats|tls):"}, "config", "outbox"),
    ]
    off = {"properties": {"enabled": {"const": False}}}
    alone = {"properties": {"replicaCount": {"maximum": 1}, "autoscaling": off, "keda": off}}
    named = ("credentialsKey", "usernameKey", "passwordKey", "tokenKey")
    secret = [within(FILLED, "outbox", "nats", key) for key in named]
    tls = ("outbox", "nats", "tls")
    client = [within(FILLED, *tls, key) for key in ("keyKey", "existingSecret")]
    keda = [
        within(FILLED, "keda", "serverAddress"),
        within({"minimum": 1}, "autoscaling", "targetAgeSeconds"),
    ]
    return [
        {"if": {"anyOf": nats}, "else": alone},
        {"if": within({"const": True}, "autoscaling", "enabled"), "then": {"properties": {"keda": off}}},
        {"if": within({"const": True}, "keda", "enabled"), "then": {"allOf": keda}},
        {"if": {"anyOf": secret}, "then": within(FILLED, "outbox", "nats", "existingSecret")},
        {"if": secret[1], "then": secret[2]},
        {"if": secret[2], "then": secret[1]},
        {"if": secret[3], "then": within({"maxLength": 0}, "outbox", "nats", "usernameKey")},
        {"if": within(FILLED, *tls, "certKey"), "then": {"allOf": client}},
        {
            # of another shutdown_timeout the template knows how many seconds it is
            "if": {"not": within({}, "config", "shutdown_timeout")},
            "then": {"properties": {"terminationGracePeriodSeconds": {"minimum": 26}}},
        },
    ]


def top(config: Schema, rules: Schema) -> dict[str, Schema]:
    image = section(
        registry=TEXT,
        repository=FILLED,
        tag=TEXT,
        digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
        pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    )
    reference = required(section(name=FILLED, key=FILLED), "name", "key")
    path = section(path=FILLED, pathType={"enum": ["Prefix", "Exact", "ImplementationSpecific"]})
    host = required(section(host=FILLED, paths={"type": "array", "items": path}), "host")
    return {
        "global": MAP,
        "replicaCount": COUNT,
        "image": required(image, "repository"),
        "imagePullSecrets": MAPS,
        "nameOverride": TEXT,
        "fullnameOverride": TEXT,
        "commonLabels": WORDS,
        "commonAnnotations": WORDS,
        "config": config,
        "outbox": section(nats=nats()),
        "rules": {
            "type": "object",
            "propertyNames": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*\.ya?ml$"},
            "additionalProperties": {"if": {"type": "object"}, "then": rules, "else": FILLED},
        },
        "shippedRules": {"type": "array", "items": {"enum": SHIPPED}, "uniqueItems": True},
        "existingConfigMap": TEXT,
        "existingSecret": TEXT,
        "existingSecrets": {
            "type": "object",
            "propertyNames": {"pattern": ENVIRONMENT_NAME},
            "additionalProperties": reference,
        },
        "secrets": WORDS | {"propertyNames": {"pattern": ENVIRONMENT_NAME}},
        "reload": {"enum": ["watch", "restart"]},
        "serviceAccount": section(create=FLAG, name=TEXT, annotations=WORDS),
        "podAnnotations": WORDS,
        "podLabels": WORDS,
        "podSecurityContext": MAP,
        "securityContext": MAP,
        "priorityClassName": TEXT,
        "schedulerName": TEXT,
        "runtimeClassName": TEXT,
        "terminationGracePeriodSeconds": {"type": "integer", "minimum": 6},
        "resources": section(requests=MAP, limits=MAP, claims=LIST),
        "nodeSelector": WORDS,
        "tolerations": MAPS,
        "affinity": MAP,
        "topologySpreadConstraints": MAPS,
        "hostAliases": MAPS,
        "dnsPolicy": TEXT,
        "dnsConfig": MAP,
        "podManagementPolicy": {"enum": ["OrderedReady", "Parallel"]},
        "updateStrategy": MAP,
        "podDisruptionBudget": section(enabled=FLAG, maxUnavailable=NUMBER_OR_PERCENT),
        "autoscaling": section(
            enabled=FLAG,
            minReplicas=ONE_OR_MORE,
            maxReplicas=ONE_OR_MORE,
            targetAgeSeconds=COUNT,
            targetCPU={"type": "string", "pattern": "^([0-9]+m|[0-9]+([.][0-9]+)?)?$"},
            metric=section(name=FILLED, matchLabels=WORDS),
            behavior=section(scaleUp=MAP, scaleDown=MAP),
        ),
        "keda": section(
            enabled=FLAG,
            serverAddress={"type": "string", "pattern": "^(https?://[^@]+)?$"},
            minWaiting=ONE_OR_MORE,
            query=TEXT,
            pollingInterval=ONE_OR_MORE,
            cooldownPeriod=COUNT,
            fallback=section(failureThreshold=ONE_OR_MORE, replicas=ONE_OR_MORE),
            authenticationRef=section(name=FILLED, kind={"enum": TRIGGER_KINDS}),
            metadata=WORDS,
        ),
        "command": TEXTS,
        "args": TEXTS,
        "extraArgs": TEXTS,
        "extraEnv": MAPS,
        "extraEnvFrom": MAPS,
        "extraVolumes": MAPS,
        "extraVolumeMounts": MAPS,
        "initContainers": MAPS,
        "sidecars": MAPS,
        "lifecycle": MAP,
        "startupProbe": MAP,
        "livenessProbe": MAP,
        "readinessProbe": MAP,
        "service": section(
            type={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
            annotations=WORDS,
            metricsPort=PORT,
            adminPort=PORT,
        ),
        "ingress": section(
            enabled=FLAG,
            className=TEXT,
            annotations=WORDS,
            hosts={"type": "array", "items": host},
            tls=MAPS,
        ),
        "persistence": section(
            enabled=FLAG,
            storageClass=TEXT,
            accessModes={
                "type": "array",
                "items": {"enum": ["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]},
                "minItems": 1,
            },
            size=SIZE,
            existingClaim=TEXT,
            annotations=WORDS,
            labels=WORDS,
            retain=FLAG,
        ),
        "serviceMonitor": section(
            enabled=FLAG,
            interval=DURATION,
            scrapeTimeout=DURATION,
            additionalLabels=WORDS,
            relabelings=MAPS,
            metricRelabelings=MAPS,
        ),
        "prometheusRule": section(enabled=FLAG, additionalLabels=WORDS, disabled=TEXTS, rules=MAPS),
        "grafanaDashboard": section(enabled=FLAG, labels=WORDS, annotations=WORDS),
        "networkPolicy": section(
            enabled=FLAG, metricsFrom=MAPS, adminFrom=MAPS, extraIngress=MAPS, extraEgress=MAPS
        ),
        "extraDeploy": {"type": "array", "items": {"type": ["object", "string"]}},
        "testFramework": section(enabled=FLAG, annotations=WORDS),
    }


def nats() -> Schema:
    """Where JetStream is; the options are those of `bridge.outbox.jetstream.address`."""
    options = {each: TEXT | {"pattern": OPTION_DURATION} for each in DURATIONS}
    return section(
        servers={"type": "array", "items": NATS_SERVER, "uniqueItems": True},
        stream={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        replicas={"type": "integer", "minimum": 1, "maximum": 5},
        storage={"enum": ["file", "memory"]},
        options=section(**options),
        existingSecret=TEXT,
        credentialsKey=TEXT,
        usernameKey=TEXT,
        passwordKey=TEXT,
        tokenKey=TEXT,
        tls=section(existingSecret=TEXT, existingConfigMap=TEXT, caKey=TEXT, certKey=TEXT, keyKey=TEXT),
    )


def embedded(schema: Schema, prefix: str) -> tuple[Schema, dict[str, Schema]]:
    """*schema* as a part of another one, and its definitions, each named with *prefix*."""
    found: Schema = adapted(schema, prefix)
    for key in ("$schema", "title"):
        found.pop(key)
    definitions = found.pop("$defs", {})
    return found, {prefix + name: each for name, each in definitions.items()}


def adapted(node: Any, prefix: str) -> Any:
    """*node* in draft 7, with messages in mind; what Helm would not keep as written has to be text."""
    if isinstance(node, list):
        return [adapted(each, prefix) for each in node]
    if not isinstance(node, dict):
        return node
    if "discriminator" in node:
        return adapted(tagged(node), prefix)
    if node == WORD:
        return TEXT  # Helm makes 83 of 0123 and false of off before bridge sees them: quote it
    if node.get("writeOnly") and node.get("format") == "password":
        return {
            "type": "string",
            "pattern": REFERENCE,
            "description": "A secret: ${env:NAME} or ${file:path}.",
        }
    found = {key: URL if key == "proxy" else adapted(value, prefix) for key, value in node.items()}
    if isinstance(node.get("$ref"), str):
        found["$ref"] = "#/definitions/" + prefix + node["$ref"].removeprefix("#/$defs/")
    return simpler(found)


def tagged(node: Schema) -> Schema:
    """A union told apart by one key, as conditions on that key."""
    tag, mapping = node["discriminator"]["propertyName"], node["discriminator"]["mapping"]
    branches = [
        {"if": {"properties": {tag: {"const": name}}, "required": [tag]}, "then": {"$ref": ref}}
        for name, ref in mapping.items()
    ]
    kept = {key: value for key, value in node.items() if key not in ("oneOf", "anyOf", "discriminator")}
    return kept | {
        "type": "object",
        "required": [tag],
        "properties": {tag: {"enum": sorted(mapping)}},
        "allOf": branches,
    }


def simpler(node: Schema) -> Schema:
    """`anyOf` of something and null, as one type: the message is then about the thing itself."""
    choices = node.get("anyOf")
    if not isinstance(choices, list) or len(choices) != 2 or {"type": "null"} not in choices:
        return node
    other: Schema = next(each for each in choices if each != {"type": "null"})
    if not isinstance(other.get("type"), str):
        return node
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return other | rest | {"type": [other["type"], "null"]}


def text() -> str:
    return json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PLACE.write_text(text())
