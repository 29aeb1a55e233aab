"""Who bridge is for NATS: a `.creds` file with the JWT and the seed of a user, or a seed alone.

nats-py's own reader loops for ever on a file without a JWT, which would stop the whole process.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from bridge.errors import ConfigError, Mistake, StartError

log = structlog.get_logger()

JWT = re.compile(r"-+BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+")
SEED = re.compile(r"\bSU[A-Z2-7]{56}\b")  # 32 bytes, two of prefix and two of checksum, in base32


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """*jwt* None: the server knows the user by its public key (`nkey` in its config)."""

    seed: str
    jwt: str | None = None


def found(text: str) -> Credentials | None:
    """What *text* says; None if it has no seed of a user."""
    seed, jwt = SEED.search(text), JWT.search(text)
    if seed is None:
        return None
    return Credentials(seed[0], jwt[1] if jwt else None)


def options(path: str) -> dict[str, Any]:
    """For nats-py. A JWT is read anew at each connection, for it may be renewed: one that cannot be read
    leaves the last one. Raises StartError for a file that is no such file.
    """
    try:
        import nkeys  # noqa: F401  # nats-py imports it only once it connects
    except ImportError:
        advice = "credentials of NATS need the extra: pip install 'tts-event-bridge[nats]'"
        raise ConfigError([Mistake("outbox", 0, "", advice)]) from None
    first = read(path)
    if first.jwt is None:
        return {"nkeys_seed_str": first.seed}
    current = _Current(path, first)
    # nats-py 2.16 asks the callbacks only where there is a user, too; it is not sent without a password.
    return {"user": "jwt", "user_jwt_cb": current.jwt, "signature_cb": current.signature}


def read(path: str) -> Credentials:
    try:
        credentials = found(Path(path).read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StartError(f"outbox: the file of credentials cannot be read: {reason}") from None
    if credentials is None:
        raise StartError(
            "outbox: the file of credentials has no seed of a user (SU…); write it with `nsc generate creds`"
        )
    return credentials


class _Current:
    """nats-py asks for the JWT and for a signature at each connection, the signature first."""

    def __init__(self, path: str, credentials: Credentials) -> None:
        self._path = path
        self._credentials = credentials

    def signature(self, nonce: str) -> bytes:
        import nkeys

        try:
            self._credentials = read(self._path)
        except StartError as error:
            log.warning("nats: the credentials read before are used again", error=str(error))
        pair = nkeys.from_seed(bytearray(self._credentials.seed.encode()))
        try:
            return base64.b64encode(pair.sign(nonce.encode()))
        finally:
            pair.wipe()

    def jwt(self) -> bytes:
        return (self._credentials.jwt or "").encode()
