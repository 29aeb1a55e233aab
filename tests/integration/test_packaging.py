"""What is installed: the wheel in its own venv, the image's recipe, the systemd unit, bridge as PID 1."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest

from tests.integration.process import PATIENCE, environment
from tests.servers import need, poll

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
UNIT = ROOT / "contrib/bridge.service"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    made = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def pip(programs: Path) -> list[str | Path]:
    """pip of the tests, for the venv with these *programs*: Debian's venv cannot make one of its own."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python"]


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh venv with the wheel and all extras in it."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    wheel = next(built.glob("*.whl"))
    made = subprocess.run(
        [
            *(*pip(folder / "bin"), "install", "--quiet", "-c", ROOT / "constraints.txt"),
            f"tts-event-bridge[all] @ {wheel.as_uri()}",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert made.returncode == 0, made.stderr
    return folder / "bin"


def test_the_sdist_has_everything_to_build_and_run_from(built: Path) -> None:
    """The wheel was made from it; the chart, the unit and the image's recipe are in it too."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        *("rules/uplinks.yaml", "src/bridge/ui/app.js", "src/bridge/share/recorded/apps.sse", "LICENSE"),
        *("helm/bridge/Chart.yaml", "contrib/bridge.service", "Dockerfile", "constraints.txt"),
    }
    assert wanted <= names
    assert not [name for name in names if name.endswith((".db", ".pyc"))]


def test_the_installed_bridge_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    """`src` is out of reach; rules, page and recordings came along."""
    code = (
        "import bridge; from importlib.resources import files; print(bridge.__file__);"
        "wanted = ('share/rules/uplinks.yaml', 'ui/app.js', 'outbox/sqlite.sql');"
        "[print(path) for path in wanted if not (files('bridge') / path).is_file()]"
    )
    made = subprocess.run(
        [installed / "python", "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert made.stdout.splitlines() == [
        str(next(installed.parent.glob("lib/*/site-packages/bridge/__init__.py")))
    ]
    extras = "import grpc, uvloop, opentelemetry.sdk, opentelemetry.exporter.otlp.proto.http"
    subprocess.run([installed / "python", "-I", "-c", extras], check=True, cwd=tmp_path)


def test_the_demo_runs_from_the_wheel_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """No server, no account, nothing left behind; ended as a supervisor ends it."""
    demo = subprocess.Popen(
        [installed / "bridge", "demo"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert demo.stdout is not None
        shown: list[str] = []
        for line in demo.stdout:
            shown.append(line)
            if re.match(r"\d\d:\d\d:\d\d .*meter", line) or len(shown) > 60:
                break
        assert any("plant-a" in line for line in shown), shown
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(PATIENCE) == 0
    finally:
        demo.kill()
        demo.communicate()
    assert list(tmp_path.iterdir()) == []


def test_constraints_pin_everything_that_is_installed(installed: Path) -> None:
    """The image gets the versions the tests ran with, none by chance."""
    made = subprocess.run(
        [*pip(installed), "freeze", "--exclude", "tts-event-bridge"],
        capture_output=True,
        text=True,
        check=True,
    )
    pinned = set((ROOT / "constraints.txt").read_text().lower().split())
    names = {line.lower().replace("_", "-") for line in made.stdout.split() if "@" not in line}
    assert not names - pinned, "run: python contrib/constraints.py"


def test_hadolint_finds_nothing() -> None:
    """But for joining RUNs: the exec form, which needs no shell, cannot be joined."""
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or need("hadolint")
    made = subprocess.run(
        [program, "--no-color", "--ignore", "DL3059", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout


def instructions() -> list[str]:
    """Of the Dockerfile, continuation lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def test_the_image_needs_no_shell_and_no_root() -> None:
    """The last stage runs nothing; what starts later is in exec form, under a numeric user."""
    found = instructions()
    last = found[max(number for number, line in enumerate(found) if line.startswith("FROM ")) :]
    assert not [line for line in last if line.startswith("RUN")]
    for word in ("ENTRYPOINT", "CMD", "VOLUME"):
        assert [line for line in last if line.startswith(f"{word} [")], word
    assert re.search(r"CMD \[", next(line for line in last if line.startswith("HEALTHCHECK")))
    assert "USER 10001:10001" in last
    labels = {"title", "description", "licenses", "version", "revision", "base.name"}
    label = next(line for line in last if line.startswith("LABEL"))
    assert set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", label)) == labels
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}" in last


def test_systemd_takes_the_unit_and_finds_it_safe(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent, and the exposure is at most 2 of 10."""
    program = need("systemd-analyze")
    unit = tmp_path / "bridge.service"
    unit.write_text(UNIT.read_text().replace("/opt/bridge/bin/bridge", "/bin/true"))
    verified = subprocess.run([program, "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout[-300:]


CONFIG = """
sources: {}
sinks: {crm: {type: webhook, url: "https://crm.example/hook"}}
admin: {listen: "127.0.0.1:0"}
log: {format: json}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="integration: a PID namespace needs root")
def test_as_pid_1_it_reloads_and_ends_when_told(tmp_path: Path) -> None:
    """In a container nobody stands above it: signals without a handler would be ignored."""
    (tmp_path / "bridge.yaml").write_text(CONFIG)
    log = tmp_path / "log"
    command = [need("unshare"), "--pid", "--fork", "--kill-child", sys.executable, "-m", "bridge", "run"]
    with log.open("wb") as stream:
        outer = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=stream, stderr=stream)
    try:
        poll(lambda: "bridge runs" in log.read_text(), "the start", PATIENCE)
        inner = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        status = Path(f"/proc/{inner}/status").read_text()
        assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE)
        os.kill(inner, signal.SIGHUP)
        poll(lambda: "config loaded" in log.read_text(), "the reload", PATIENCE)
        os.kill(inner, signal.SIGTERM)
        assert outer.wait(PATIENCE) == 0, log.read_text()
    finally:
        outer.kill()
        outer.wait()
