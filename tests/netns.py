"""A network namespace for one process, and the cables that reach into it: one to NATS, one to the rest.

A pulled cable is what a partition is: packets are lost, nobody is told, connections go on when it is back.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.servers import need

WIRES = ("nats", "rest")


@dataclass(frozen=True, slots=True)
class Wire:
    """A veth pair: *near* its end on this side, with the address *here*; *there* is the other end's."""

    near: str
    here: str
    there: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """Its loopback is up, and it reaches nothing but the near ends of *wires*."""

    name: str
    wires: dict[str, Wire]

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command that is to run in it; the process keeps its id."""
        return ("ip", "netns", "exec", self.name)

    def pull(self, *wires: str) -> None:
        self._set(wires, "down")

    def plug(self, *wires: str) -> None:
        self._set(wires, "up")

    def _set(self, wires: Sequence[str], state: str) -> None:
        for each in wires or WIRES:
            ip("link", "set", self.wires[each].near, state)


@contextmanager
def namespace(number: int = 0) -> Iterator[Namespace]:
    """Skips the test where namespaces may not be made. *number*: of several at a time, below 16."""
    need("ip")
    tag = f"{os.getpid() % 4096:03x}{number:x}"
    made = Namespace(f"bridge-{tag}", {})
    third = os.getpid() % 250 + 1
    try:
        try:
            ip("netns", "add", made.name)
            ip("-n", made.name, "link", "set", "lo", "up")
            for place, each in enumerate(WIRES):
                made.wires[each] = _wire(made.name, f"br{tag}{each[0]}", third, number * 8 + place * 4)
        except OSError as error:
            pytest.skip(f"integration: no network namespace with cables can be made here: {error}")
        yield made
    finally:
        for wire in made.wires.values():
            subprocess.run(["ip", "link", "del", wire.near], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", made.name], capture_output=True, check=False)


def _wire(namespace: str, near: str, third: int, first: int) -> Wire:
    far, here, there = f"{near}x", f"10.213.{third}.{first + 1}", f"10.213.{third}.{first + 2}"
    ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace)
    ip("addr", "add", f"{here}/30", "dev", near)
    ip("link", "set", near, "up")
    ip("-n", namespace, "addr", "add", f"{there}/30", "dev", far)
    ip("-n", namespace, "link", "set", far, "up")
    return Wire(near, here, there)


def ip(*arguments: str) -> None:
    """Raises OSError with what `ip` said."""
    told = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if told.returncode:
        raise OSError(told.stderr.strip())
