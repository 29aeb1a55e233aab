"""What Slack says, judged.  No I/O, no clock in this file.

The words are those of "Sending messages using incoming webhooks" (handling errors), of `chat.postMessage`
and of "Web API" in Slack's documentation. A word not listed is tried again later: it may be new.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from bridge.delivery import RESPONSE_LIMIT, Delivered, Failure, Outcome, Pause, Reason, Rejected, RetryLater
from bridge.retry import http_outcome

NO_HEADER = 30.0  # seconds to pause when Slack limits us and names no time (it documents that it always does)

LIMITED = frozenset({"ratelimited", "rate_limited", "message_limit_exceeded"})

AUTH = frozenset(
    {
        "access_denied",
        "accesslimited",
        "account_inactive",
        "ekm_access_denied",
        "enterprise_is_restricted",
        "invalid_auth",
        "invalid_token",
        "missing_scope",
        "no_permission",
        "not_allowed_token_type",
        "not_authed",
        "org_login_required",
        "team_access_not_granted",
        "token_expired",
        "token_revoked",
        "two_factor_setup_required",
    }
)
"""The token or its rights are wrong."""

SINK = frozenset(
    {
        "action_prohibited",
        "as_user_not_supported",
        "channel_is_archived",
        "channel_not_found",
        "deprecated_endpoint",
        "invalid_channel",
        "is_archived",
        "method_deprecated",
        "no_active_hooks",
        "no_service",
        "no_service_id",
        "no_team",
        "not_in_channel",
        "posting_to_general_channel_denied",
        "restricted_action",
        "restricted_action_non_threadable_channel",
        "restricted_action_read_only_channel",
        "restricted_action_thread_only_channel",
        "team_disabled",
        "team_not_found",
        "unknown_method",
        "user_not_found",
    }
)
"""The webhook or the channel is: nothing will arrive until somebody changes it there or in the config."""

MESSAGE = frozenset(
    {
        "attachment_payload_limit_exceeded",
        "cannot_reply_to_message",
        "invalid_arg_name",
        "invalid_arguments",
        "invalid_array_arg",
        "invalid_attachments",
        "invalid_blocks",
        "invalid_blocks_format",
        "invalid_charset",
        "invalid_form_data",
        "invalid_json",
        "invalid_metadata_format",
        "invalid_metadata_schema",
        "invalid_payload",
        "invalid_post_type",
        "json_not_object",
        "markdown_text_conflict",
        "metadata_must_be_sent_from_app",
        "metadata_too_large",
        "missing_post_type",
        "msg_blocks_too_long",
        "msg_too_long",
        "no_text",
        "too_many_attachments",
        "too_many_contact_cards",
    }
)

SERVER = frozenset(
    {
        "fatal_error",
        "internal_error",
        "request_timeout",
        "rollup_error",
        "service_unavailable",
        "team_added_to_org",
    }
)

KNOWN = LIMITED | AUTH | SINK | MESSAGE | SERVER


SCALAR = r'"(?:[^"\\]|\\.)*"|true|false|null|-?[0-9.]+'
MEMBER = re.compile(rf'[{{,]\s*"(\w+)"\s*:\s*({SCALAR})(?=\s*,)')


def judged(status: int, body: str, wait: float | None, *, web_api: bool) -> Outcome:
    """The outcome of one answer; *wait* is its `Retry-After` in seconds, *body* its beginning.

    HTTP 200 is success only with the body `ok` (incoming webhook) or `"ok":true` (Web API).
    """
    answer = document(body)
    if status == 200 and (answer.get("ok") is True if web_api else body.strip() == "ok"):
        return Delivered(status)
    said = _word(answer, body)
    if said is None:
        return _unspoken(status, body, wait)

    def failure(reason: Reason) -> Failure:
        return Failure(reason, f"Slack says {said}", status, body)

    if said in LIMITED:
        return Pause(failure("rate_limited"), NO_HEADER if wait is None else wait)
    if said in AUTH:
        return Pause(failure("auth"))
    if said in SINK:
        return Pause(failure("client_error"))
    if said in MESSAGE:
        return Rejected(failure("client_error"))
    return RetryLater(failure("server_error"))


def _unspoken(status: int, body: str, wait: float | None) -> Outcome:
    """The outcome of an answer in no words of Slack's: a proxy's, an outage's, another program's."""
    if 200 <= status < 300:
        return RetryLater(Failure("other", "the answer is not Slack's ok", status, body))
    return http_outcome(status, response=body, retry_after=wait)


def document(body: str) -> dict[str, Any]:
    """The answer's members; of one that was cut off (it repeats the message) those at its beginning."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return _beginning(body) if len(body.encode(errors="replace")) >= RESPONSE_LIMIT else {}
    return found if isinstance(found, dict) else {}


def _beginning(body: str) -> dict[str, Any]:
    """The plain members with which *body* begins."""
    found: dict[str, Any] = {}
    at = 0
    while body.startswith("{") and (member := MEMBER.match(body, at)):
        try:
            found[member[1]] = msgspec.json.decode(member[2])
        except msgspec.MsgspecError:
            break
        at = member.end()
    return found


def word(answer: dict[str, Any]) -> str:
    """The error word in *answer*, known or not; '' without one."""
    found = answer.get("error", "")
    return found if isinstance(found, str) else ""


def _word(answer: dict[str, Any], body: str) -> str | None:
    """The error word Slack gave, if it is one we know: only those are shown."""
    said = answer.get("error", body.strip())
    return said if isinstance(said, str) and said in KNOWN else None
