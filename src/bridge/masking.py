"""Events without what is private in them: EUIs, addresses, keys, payloads, places.

No I/O, no clock, no randomness in this file. The same value becomes the same mask wherever it stands, so that
a masked recording tells the same story; the secret of a file makes the masks useless elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

EUI = re.compile(r"(?<![0-9A-Za-z])(?:[0-9A-F]{16}|[0-9a-f]{16})(?![0-9A-Za-z])")
KEY = re.compile(r"(?<![0-9A-Za-z])(?:[0-9A-F]{32}|[0-9a-f]{32})(?![0-9A-Za-z])")
API_KEY = re.compile(r"\b(NNSXS|MFRWG|OJSWM|MF2XI|ONZW4)\.[0-9A-Za-z]+\.[0-9A-Za-z]+")
ADDRESS = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9.])")

PAYLOADS = frozenset({"raw_payload", "frm_payload", "mic", "proprietary_payload", "f_opts", "payload_crc"})
"""Bytes that devices sent or get."""

DECODED = frozenset({"decoded_payload", "normalized_payload"})
"""What was made of them: every value below is hidden."""

SECRETS = re.compile(r"(?:key|secret|password|token|authentication_code|session_key_id)\Z")
NUMBERS = frozenset({"latitude", "longitude", "altitude"})
PEOPLE = frozenset({"remote_ip", "ip", "user_agent", "token_id", "primary_email_address", "email_address"})


class Mask:
    """Hides by *secret*, bytes that only this recording has."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def event(self, body: bytes) -> bytes:
        """The event *body* masked: name, time, ids of entities and `unique_id` stay."""
        document = msgspec.json.decode(body)
        return msgspec.json.encode(self._value("", document))

    def _value(self, name: str, value: Any) -> Any:
        handler = self._handler(name)
        if handler is not None:
            return handler(value)
        if isinstance(value, dict):
            return {each: self._value(each, inner) for each, inner in value.items()}
        if isinstance(value, list):
            return [self._value(name, inner) for inner in value]
        return self.text(value) if isinstance(value, str) else value

    def _handler(self, name: str) -> Callable[[Any], Any] | None:
        if name in PAYLOADS:
            return self._payload
        if name in DECODED or name in PEOPLE:
            return self._hidden
        if name in NUMBERS:
            return lambda value: 0
        if name == "dev_addr":
            return lambda value: self._hex(value, "address") if isinstance(value, str) else value
        if SECRETS.search(name) and name not in ("correlation_ids", "unique_id"):
            return self._payload
        return None

    def text(self, value: str) -> str:
        """*value* with EUIs, keys and addresses hidden wherever they stand in it, in their own case."""
        lower = value.islower()
        value = KEY.sub(lambda found: self._hex(found[0], "key", lower), value)
        value = EUI.sub(lambda found: self._hex(found[0], "eui", lower), value)
        value = API_KEY.sub(lambda found: f"{found[1]}.{self._word(found[0])}.MASKED", value)
        return ADDRESS.sub(lambda found: self._address(found[0]), value)

    def _hex(self, value: str, what: str, lower: bool = False) -> str:
        """As many hex digits, the same ones for both cases of *value*; *lower* decides if it is all digits.

        `eui-0000000000000001` is an id, and ids are lower-case.
        """
        masked = self._digest(what, value.upper()).hex()[: len(value)]
        return masked if value.islower() or (lower and value.isdigit()) else masked.upper()

    def _payload(self, value: Any) -> Any:
        """Bytes of the same length where *value* is base64, a key where it is hex, all below it otherwise."""
        if not isinstance(value, str):
            return self._hidden(value)
        if re.fullmatch(r"(?:[0-9A-F]{8}|[0-9A-F]{16}|[0-9A-F]{32})", value):
            return self._hex(value, {8: "address", 16: "eui", 32: "key"}[len(value)])
        try:
            length = len(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            return self._word(value)
        return base64.b64encode(b"".join(self._stream(value, length))).decode()

    def _hidden(self, value: Any) -> Any:
        """Every value below *value* is hidden; the shape stays."""
        match value:
            case dict():
                return {
                    name: inner if name == "@type" else self._hidden(inner) for name, inner in value.items()
                }
            case list():
                return [self._hidden(inner) for inner in value]
            case bool():
                return self._number(str(value)) % 2 == 0
            case int():
                return self._number(str(value)) % 1000
            case float():
                return self._number(str(value)) % 1000 / 10
            case str():
                return self._address(value) if ADDRESS.fullmatch(value) else self._word(value)
        return value

    def _word(self, value: str) -> str:
        return "masked-" + self._digest("word", value).hex()[:12]

    def _address(self, value: str) -> str:
        """In the block for documentation (RFC 5737)."""
        return f"192.0.2.{self._number(value) % 254 + 1}"

    def _number(self, value: str) -> int:
        return int.from_bytes(self._digest("number", value)[:6])

    def _stream(self, value: str, length: int) -> Iterator[bytes]:
        for block in range(0, length, 32):
            yield self._digest(f"bytes{block}", value)[: length - block]

    def _digest(self, what: str, value: str) -> bytes:
        return hashlib.blake2b(f"{what}\0{value}".encode(), key=self._secret[:64], digest_size=32).digest()


def line(body: bytes, delimiter: bytes) -> bytes:
    """The event *body* as The Things Stack puts it on the wire."""
    return b'{"result":%s}%s' % (body, delimiter)


DELIMITERS: Mapping[str, bytes] = {".sse": b"\n\n", ".ndjson": b"\n"}
"""Of the framings of a recorded file, by its ending."""
