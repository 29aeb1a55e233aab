"""Standard Webhooks signatures, checked by the reference implementation."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from bridge.sinks.signing import headers, key

OLD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
BODY = b'{"name":"as.up.data.forward"}'
ID = "d_ohsr2xa7qbhhf3x2cwqbnsfcxa"


def signed(*secrets: str, body: bytes = BODY) -> dict[str, str]:
    return headers([key(secret) for secret in secrets], ID, int(time.time()), body)


def test_a_signature_is_verified_by_the_reference() -> None:
    """Id, time and body are signed as the specification says."""
    assert Webhook(OLD).verify(BODY, signed(OLD)) == {"name": "as.up.data.forward"}


def test_the_example_of_the_specification() -> None:
    """Its message, secret and signature."""
    made = headers([key(OLD)], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("receiver", [OLD, NEW])
def test_while_rotating_both_secrets_verify(receiver: str) -> None:
    """The receiver may change its secret at any moment."""
    made = signed(OLD, NEW)
    assert len(made["webhook-signature"].split(" ")) == 2
    Webhook(receiver).verify(BODY, made)


@pytest.mark.parametrize("field", ["webhook-id", "webhook-timestamp"])
def test_what_was_changed_on_the_way_is_noticed(field: str) -> None:
    """Id and time are signed too."""
    made = signed(OLD)
    made[field] = str(int(time.time()) + 1)
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(BODY, made)
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(BODY + b" ", signed(OLD))


def test_without_a_secret_there_is_an_id_and_no_signature() -> None:
    """Receivers that only want to drop repeats need no secret."""
    assert set(signed()) == {"webhook-id", "webhook-timestamp"}


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=200))
def test_any_key_and_body_verify(secret: bytes, body: bytes) -> None:
    """The reference parses the body as JSON, so it is wrapped."""
    text = "whsec_" + base64.b64encode(secret).decode()
    document = b'"' + base64.b64encode(body) + b'"'
    assert Webhook(text).verify(document, signed(text, body=document)) == base64.b64encode(body).decode()


def test_padding_may_be_missing_and_a_plain_secret_is_its_bytes() -> None:
    """What other tools print."""
    assert key("whsec_QUI") == key("whsec_QUI=") == b"AB"
    assert key("plain secret") == b"plain secret"
    assert key("schlüssel") == "schlüssel".encode()


def test_base64_is_taken_as_the_reference_does_without_the_prefix_too() -> None:
    """The same text in both places verifies."""
    text = base64.b64encode(b"k" * 24).decode()
    assert Webhook(text).verify(b'"x"', signed(text, body=b'"x"')) == "x"


@pytest.mark.parametrize("wrong", ["", "whsec_", "whsec_not base64!", "whsec_A"])
def test_a_secret_that_cannot_be_meant_is_refused_without_showing_it(wrong: str) -> None:
    """Told at load."""
    with pytest.raises(ValueError, match=r"base64|empty") as caught:
        key(wrong)
    assert not wrong.removeprefix("whsec_") or wrong not in str(caught.value)
