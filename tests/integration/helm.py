"""The chart as Kubernetes gets it: rendered by the real helm, laid out as the kubelet lays out volumes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.servers import built

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "bridge"
VALUE_SETS = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = "1.31"  # what helm is told it renders for: a helm built with `go install` knows no version
SHIPPED = "/usr/share/bridge/rules"  # where the image has the shipped rules (Dockerfile)

Manifest = dict[str, Any]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One run of helm."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HELM_")}
    return subprocess.run(
        [built("helm"), *map(str, arguments), "--kube-version", KUBERNETES],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
        timeout=60,
    )


def template(*values: Path | dict[str, Any] | str, name: str = "x") -> subprocess.CompletedProcess[str]:
    """`helm template` with files, maps (as --set-json) or `key=value` texts."""
    arguments: list[str | Path] = []
    for each in values:
        if isinstance(each, Path):
            arguments += ["-f", each]
        elif isinstance(each, str):
            arguments += ["--set", each]
        else:
            for key, value in each.items():
                arguments += ["--set-json", f"{key}={json.dumps(value)}"]
    return helm("template", name, CHART, "--namespace", "lorawan", *arguments)


def rendered(*values: Path | dict[str, Any] | str) -> list[Manifest]:
    """The manifests of these values; fails with what helm says."""
    made = template(*values)
    assert made.returncode == 0, made.stderr
    return [each for each in yaml.safe_load_all(made.stdout) if each]


def one(manifests: Sequence[Manifest], kind: str, name: str = "") -> Manifest:
    found = [each for each in manifests if each["kind"] == kind and name in each["metadata"]["name"]]
    assert len(found) == 1, [(each["kind"], each["metadata"]["name"]) for each in manifests]
    return found[0]


def workload(manifests: Sequence[Manifest]) -> Manifest:
    """What runs bridge: the StatefulSet, or the Deployment where the outbox is NATS; there is one of them."""
    kinds = {each["kind"] for each in manifests} & {"StatefulSet", "Deployment"}
    assert len(kinds) == 1, kinds
    return one(manifests, kinds.pop())


def pod_of(manifests: Sequence[Manifest]) -> dict[str, Any]:
    found: dict[str, Any] = workload(manifests)["spec"]["template"]["spec"]
    return found


def environment_of(container: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The variables the kubelet gives to *container*; *secrets* are the keys and values of each by its name.

    `$(NAME)` stands for a variable that comes before it, and for itself where there is none.
    """
    found: dict[str, str] = {}
    for each in container.get("envFrom", ()):
        found |= secrets[each["secretRef"]["name"]]
    for each in container["env"]:
        if "value" in each:
            text = re.sub(r"\$\(([A-Za-z_]\w*)\)", lambda part: found.get(part[1], part[0]), each["value"])
            found[each["name"]] = text
        else:
            reference = each["valueFrom"]["secretKeyRef"]
            found[each["name"]] = secrets[reference["name"]][reference["key"]]
    return found


def mounted(manifests: Sequence[Manifest], folder: Path) -> Path:
    """The pod's /etc/bridge as *folder*, made as the kubelet does: files in a folder that `..data` links to.

    The shipped rules are the image's; here they are the checkout's.
    """
    data = {each["metadata"]["name"]: each["data"] for each in manifests if each["kind"] == "ConfigMap"}
    sources = next(each for each in pod_of(manifests)["volumes"] if each["name"] == "config")["projected"][
        "sources"
    ]
    version = folder / f"..{len(list(folder.iterdir())) if folder.exists() else 0}"
    for source in sources:
        content = data[source["configMap"]["name"]]
        for item in source["configMap"]["items"]:
            path = version / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content[item["key"]].replace(SHIPPED, str(ROOT / "rules")))
    swap(folder, version)
    return folder / "bridge.yaml"


def swap(folder: Path, version: Path) -> None:
    """Show *version* in *folder*, in one step, as the kubelet's atomic writer does."""
    new = folder / "..data_tmp"
    new.symlink_to(version.name)
    new.rename(folder / "..data")
    for each in version.iterdir():
        if not (folder / each.name).is_symlink():
            (folder / each.name).symlink_to(Path("..data") / each.name)
