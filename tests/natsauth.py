"""Keys and JWTs of NATS users as `nsc` makes them, for a server in operator mode."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import nkeys

PREFIXES = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
UNLIMITED = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}


@dataclass(frozen=True, slots=True)
class Key:
    """*seed* `S…`, *public* its public half."""

    seed: str
    public: str

    @classmethod
    def new(cls, kind: str) -> Key:
        seed = nkeys.encode_seed(os.urandom(32), PREFIXES[kind])
        return cls(seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode())

    def signed(self, subject: str, name: str, nats: dict[str, object]) -> str:
        """A JWT about *subject*."""
        claims = {
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject,
            "nats": nats | {"version": 2},
        }
        claims["jti"] = (
            base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
        )
        text = ".".join(
            encoded(json.dumps(each).encode()) for each in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)
        )
        return f"{text}.{encoded(nkeys.from_seed(bytearray(self.seed.encode())).sign(text.encode()))}"


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Operator:
    """One account with JetStream, and a system account."""

    key: Key
    account: Key
    system: Key

    @classmethod
    def new(cls) -> Operator:
        return cls(Key.new("operator"), Key.new("account"), Key.new("account"))

    @property
    def config(self) -> str:
        """Of a server that trusts it."""
        storage = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
        plant = self.key.signed(
            self.account.public, "plant", {"type": "account", "limits": UNLIMITED | storage}
        )
        system = self.key.signed(self.system.public, "SYS", {"type": "account", "limits": UNLIMITED})
        operator = self.key.signed(self.key.public, "op", {"type": "operator"})
        return (
            f"operator: {operator}\nsystem_account: {self.system.public}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {self.account.public}: {plant}, {self.system.public}: {system} }}\n"
        )

    def credentials(self, path: Path) -> Path:
        """The `.creds` file of a new user."""
        user = Key.new("user")
        jwt = self.account.signed(
            user.public, "bridge", {"type": "user", "subs": -1, "data": -1, "payload": -1}
        )
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        return path
