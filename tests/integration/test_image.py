"""The image's recipe, executed step by step in a clean Debian root: no container engine is needed.

The root comes from debootstrap and the mirror this machine installs from; it is kept for the next run. What
the last stage copies goes into a second root, from which every shell is removed before bridge starts there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers import need, poll

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="slow: debootstrap and chroot need root"),
]

CHECKOUT = Path(__file__).parents[2]
CACHE = CHECKOUT / ".cache" / "debian"
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
"""What the base image has. Debian's Python is older than the image's, and as new as bridge asks for."""


@dataclass
class Stage:
    """A root, and what ENV, WORKDIR, USER and the exec-form instructions have set so far."""

    root: Path
    env: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    )
    folder: str = "/"
    user: str = "0:0"
    commands: dict[str, list[str]] = field(default_factory=dict)


def sources() -> str:
    """The Debian mirror of this machine."""
    places = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(path.read_text() for path in places if path.is_file())
    found = re.search(r"^(?:deb(?: \[.*\])? |URIs: )(\S+/debian)/?(?:\s|$)", text, re.MULTILINE)
    return found[1] if found else "http://deb.debian.org/debian"


@pytest.fixture(scope="module")
def base() -> Path:
    """A clean Debian with Python, nothing of this machine but its name servers."""
    suite = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    root = CACHE / (suite[1] if suite else "stable")
    if not (root / "usr/bin/python").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        include = f"--include={PACKAGES}"
        command = [need("debootstrap"), "--variant=minbase", include, root.name, str(root), sources()]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return root


def copied(root: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", root, to], check=True)
    shutil.copy("/etc/resolv.conf", to / "etc/resolv.conf")
    return to


def run(stage: Stage, command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    """*command* as the stage's user in its root, in its folder, with its variables and no others."""
    return subprocess.run(
        in_root(stage, command),
        env=stage.env | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def in_root(stage: Stage, command: Sequence[str]) -> list[str]:
    inside = [need("chroot"), f"--userspec={stage.user}", str(stage.root), "/usr/bin/env", "-C", stage.folder]
    return [*inside, *command]


def instructions() -> Iterator[tuple[str, str]]:
    lines = [line for line in (CHECKOUT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def build(base: Path, folder: Path, network: Mapping[str, str]) -> Stage:
    """Executes the Dockerfile; the last stage."""
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for word, rest in instructions():
        if word == "FROM":
            stages.append(Stage(copied(base, folder / str(len(stages)))))
            continue
        if word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
            continue
        step(stages, word, re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], rest), network)
    return stages[-1]


def step(stages: list[Stage], word: str, rest: str, network: Mapping[str, str]) -> None:
    stage = stages[-1]
    match word:
        case "ENV":
            stage.env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        case "WORKDIR":
            stage.folder = rest
            (stage.root / rest[1:]).mkdir(parents=True, exist_ok=True)
        case "USER":
            stage.user = rest
        case "COPY":
            copy(stages, rest.split())
        case "RUN":
            trust(stage, network)
            made = run(stage, json.loads(rest), **network)
            assert made.returncode == 0, f"{rest}\n{made.stdout}\n{made.stderr}"
        case "ENTRYPOINT" | "CMD":
            stage.commands[word] = json.loads(rest)
        case "HEALTHCHECK":
            stage.commands[word] = json.loads(rest[rest.index("[") :])
        case "LABEL" | "EXPOSE" | "VOLUME" | "STOPSIGNAL":
            pass
        case _:
            raise AssertionError(f"{word}: this test does not know it")


def trust(stage: Stage, network: Mapping[str, str]) -> None:
    """Certificates that this machine's network asks for, where the variables say they are."""
    for value in network.values():
        if value.startswith("/") and Path(value).is_file():
            place = stage.root / value.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(value, place)


def copy(stages: list[Stage], words: list[str]) -> None:
    stage, origin, owner = stages[-1], CHECKOUT, None
    while words[0].startswith("--"):
        name, _, value = words.pop(0).partition("=")
        if name == "--from":
            origin = stages[0].root
        else:
            owner = value
    *names, to = words
    target = stage.root / os.path.normpath(f"{stage.folder}/{to}").lstrip("/")
    for name in names:
        found = origin / name.lstrip("/")
        if found.is_dir():
            shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(found, target / found.name if to.endswith("/") else target)
    if owner:
        subprocess.run(["chown", "-R", owner, target], check=True)


@pytest.fixture(scope="module")
def image(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """What would be pushed, without a shell in it."""
    asked = subprocess.run(
        ["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    network = {
        f"PIP_{name.upper().replace('-', '_')}": value
        for name, value in re.findall(r"global\.([a-z-]+)='([^']*)'", asked.stdout)
        if name in ("index-url", "extra-index-url", "trusted-host", "proxy")
    }
    kept = {
        key: value for key, value in os.environ.items() if "proxy" in key.lower() or key.startswith("PIP_")
    }
    stage = build(base, tmp_path_factory.mktemp("image"), kept | network)
    for shell in ("sh", "bash", "dash", "rbash"):
        for folder in ("bin", "usr/bin"):
            (stage.root / folder / shell).unlink(missing_ok=True)
    return stage


CONFIG = """
sources: {}
sinks: {crm: {type: webhook, url: "https://crm.example/hook"}}
rules: [/usr/share/bridge/rules/everything-to-mqtt.yaml]
log: {format: json}
"""


def test_the_image_runs_without_shell_and_root(image: Stage) -> None:
    """Entry point, default command, health check and SIGTERM, as the user the image names."""
    assert run(image, ["bridge", "--version"]).returncode == 0
    assert run(image, ["/bin/sh", "-c", "true"]).returncode != 0
    uid = run(image, ["python", "-c", "import os; print(os.getuid(), os.getgid(), os.getcwd())"])
    assert uid.stdout.split() == ["10001", "10001", "/data"]
    assert run(image, ["bridge", "doctor", "--help"]).returncode == 0
    assert run(image, ["touch", "/opt/bridge/x"]).returncode != 0


def test_the_container_starts_answers_and_stops(image: Stage, tmp_path: Path) -> None:
    """With the config where the image looks for it, and its outbox in the volume."""
    (image.root / "etc/bridge").mkdir(exist_ok=True)
    (image.root / "etc/bridge/bridge.yaml").write_text(CONFIG.replace("crm", "broker"))
    command = [*image.commands["ENTRYPOINT"], *image.commands["CMD"]]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        running = subprocess.Popen(in_root(image, command), env=image.env, stdout=stream, stderr=stream)
    try:
        poll(lambda: "bridge runs" in log.read_text() or running.poll() is not None, "the start", 60)
        assert running.poll() is None, log.read_text()
        healthy = run(image, image.commands["HEALTHCHECK"])
        assert healthy.returncode == 0, healthy.stderr
        assert (image.root / "data/bridge.db").stat().st_uid == 10001
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        assert time.monotonic() - began < 10
        assert run(image, image.commands["HEALTHCHECK"]).returncode != 0
    finally:
        running.kill()
        running.wait()


def test_the_image_is_small(image: Stage) -> None:
    """What bridge adds to the base: no pip, compiled by hash so that a rebuild is the same, below 150 MB."""
    added = image.root / "opt/bridge"
    size = sum(path.stat().st_size for path in added.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < 150_000_000, f"{size / 1e6:.0f} MB"
    flags = {path.read_bytes()[4] for path in added.rglob("*.pyc")}
    assert flags == {0b11}, "PEP 552: hash-based, checked"
    assert not list(added.glob("lib/*/site-packages/pip"))
