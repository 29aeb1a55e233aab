"""The custom resources of the chart: those parts of their documented APIs that it uses, and nothing else."""

from __future__ import annotations

from typing import Any

BEHAVIOR: dict[str, Any] = {
    "additionalProperties": False,
    "properties": {
        direction: {
            "additionalProperties": False,
            "properties": {
                "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
                "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
                "policies": {
                    "type": "array",
                    "items": {
                        "required": ["type", "value", "periodSeconds"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"enum": ["Pods", "Percent"]},
                            "value": {"type": "integer", "minimum": 1},
                            "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800},
                        },
                    },
                },
            },
        }
        for direction in ("scaleUp", "scaleDown")
    },
}
"""HPAScalingRules of autoscaling/v2."""

SPECS: dict[str, dict[str, Any]] = {
    "ServiceMonitor": {
        "required": ["selector", "endpoints"],
        "additionalProperties": False,
        "properties": {
            "jobLabel": {"type": "string"},
            "selector": {
                "additionalProperties": False,
                "properties": {"matchLabels": {"type": "object"}, "matchExpressions": {"type": "array"}},
            },
            "endpoints": {
                "type": "array",
                "items": {
                    "required": ["port"],
                    "additionalProperties": False,
                    "properties": {
                        "port": {"type": "string"},
                        "path": {"type": "string"},
                        "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                        "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                        "relabelings": {"type": "array"},
                        "metricRelabelings": {"type": "array"},
                    },
                },
            },
        },
    },
    "PrometheusRule": {
        "required": ["groups"],
        "additionalProperties": False,
        "properties": {
            "groups": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "required": ["name", "rules"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string"},
                        "rules": {
                            "type": "array",
                            "items": {
                                "required": ["alert", "expr"],
                                "additionalProperties": False,
                                "properties": {
                                    "alert": {"type": "string"},
                                    "expr": {"type": "string"},
                                    "for": {"type": "string"},
                                    "labels": {"additionalProperties": {"type": "string"}},
                                    "annotations": {"additionalProperties": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
            }
        },
    },
    "ScaledObject": {
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": {
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "name": {"type": "string"},
                },
            },
            "pollingInterval": {"type": "integer"},
            "cooldownPeriod": {"type": "integer"},
            "minReplicaCount": {"type": "integer"},
            "maxReplicaCount": {"type": "integer"},
            "fallback": {
                "required": ["failureThreshold", "replicas"],
                "additionalProperties": False,
                "properties": {"failureThreshold": {"type": "integer"}, "replicas": {"type": "integer"}},
            },
            "advanced": {
                "additionalProperties": False,
                "properties": {
                    "horizontalPodAutoscalerConfig": {
                        "additionalProperties": False,
                        "properties": {"behavior": BEHAVIOR},
                    }
                },
            },
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "required": ["type", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"const": "prometheus"},
                        "metricType": {"enum": ["AverageValue", "Value"]},
                        "metadata": {
                            "required": ["serverAddress", "query", "threshold"],
                            "additionalProperties": {"type": "string"},
                        },
                        "authenticationRef": {
                            "required": ["name"],
                            "additionalProperties": False,
                            "properties": {
                                "name": {"type": "string"},
                                "kind": {"enum": ["TriggerAuthentication", "ClusterTriggerAuthentication"]},
                            },
                        },
                    },
                },
            },
        },
    },
}

CUSTOM = {
    "ServiceMonitor": ("monitoring.coreos.com/v1", SPECS["ServiceMonitor"]),
    "PrometheusRule": ("monitoring.coreos.com/v1", SPECS["PrometheusRule"]),
    "ScaledObject": ("keda.sh/v1alpha1", SPECS["ScaledObject"]),
}
"""By kind: the API's version, and what its spec may have."""
