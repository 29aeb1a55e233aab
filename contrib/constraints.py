"""Write constraints.txt: the versions of everything `tts-event-bridge[all]` needs, as installed here.

The image is built with them, so that the same commit gives the same image. Run it in the virtual environment
the tests have passed in: `python contrib/constraints.py`.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "constraints.txt"


def wanted() -> list[Requirement]:
    """What pyproject.toml names, with all extras but `dev`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name != "dev"]
    found = [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]
    return [each for each in found if each.name != project["name"]]


def closure(asked: list[Requirement]) -> dict[str, str]:
    """Name to installed version of *asked* and all it needs."""
    found: dict[str, str] = {}
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        installed = distribution(name)
        found[name] = installed.version
        for each in map(Requirement, installed.requires or ()):
            if any(applies(each, extra) for extra in ("", *requirement.extras)):
                asked.append(each)
    return found


def applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def text() -> str:
    lines = [f"{name}=={version}\n" for name, version in sorted(closure(wanted()).items())]
    return "".join(["# Made by contrib/constraints.py.\n", *lines])


if __name__ == "__main__":
    PLACE.write_text(text())
