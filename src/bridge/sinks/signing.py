"""Standard Webhooks 1.0: who sent it, and that nobody changed it.  No I/O, no clock in this file.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"


def key(secret: str) -> bytes:
    """The key in *secret*; raises ValueError.

    The reference libraries take what they are given for base64, with or without `whsec_`: whoever puts the
    same text into one of them must be able to verify. A text that is no base64 none of them takes; its bytes
    are the key.
    """
    text = secret.removeprefix(PREFIX)
    has_prefix = text is not secret
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4 if has_prefix else 0), validate=True)
    except binascii.Error:
        if has_prefix:
            raise ValueError("what follows whsec_ must be base64") from None
        found = secret.encode()
    except ValueError:  # not ASCII
        found = secret.encode()
    if not found:
        raise ValueError("the secret is empty")
    return found


def headers(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one attempt; *timestamp* in unix seconds. All *keys* sign: that is how to rotate."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    found = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if keys:
        signatures = (base64.b64encode(hmac.digest(each, signed, hashlib.sha256)).decode() for each in keys)
        found["webhook-signature"] = " ".join(f"v1,{each}" for each in signatures)
    return found
