"""Every block of the README does what it says: the files load, the commands run, the chart renders."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bridge.cli import COMMANDS
from tests.integration.process import run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> Iterator[str]:
    return (text for found, text in BLOCK.findall(README) if found == kind)


def files() -> dict[str, str]:
    """Path to text: a YAML block says in its first line where it goes."""
    found: dict[str, str] = {}
    for text in blocks("yaml"):
        first, _, rest = text.partition("\n")
        assert first.startswith("# "), f"a block without a path: {first}"
        found[first.removeprefix("# ")] = rest
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    """Folder and arguments of each command in the shell blocks."""
    for text in blocks("sh"):
        folder = ""
        for line in text.splitlines():
            words = shlex.split(line.partition(">")[0])
            if words[:1] == ["cd"]:
                folder = words[1]
            else:
                assert words[:1] == ["bridge"], line
                yield folder, words[1:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, text in files().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


@pytest.mark.parametrize(("where", "arguments"), list(commands()), ids=" ".join)
def test_a_command_of_the_readme_succeeds(folder: Path, where: str, arguments: list[str]) -> None:
    """In the folder it is shown in, with the files shown there."""
    ended = run(*arguments, cwd=folder / where)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_readme_fits_and_its_links_lead_somewhere() -> None:
    """At most 250 lines."""
    assert len(README.splitlines()) <= 250
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_values_of_the_readme_are_the_charts(folder: Path) -> None:
    """Every key of them is one of the chart's own."""
    shown = yaml.safe_load((folder / "kubernetes" / "values.yaml").read_text())
    known = yaml.safe_load((ROOT / "helm" / "bridge" / "values.yaml").read_text())
    assert set(shown) <= set(known)


def test_commands_named_in_the_readme_exist() -> None:
    """`bridge x` in the text is a command."""
    for name in re.findall(r"`bridge ([a-z][a-z-]*)", README):
        assert name in COMMANDS, name
