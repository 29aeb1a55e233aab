"""What an Alertmanager is told, and the config of its sink."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.event import nanoseconds
from bridge.sinks.alertmanager import AlertmanagerConfig
from bridge.sinks.alertmanager.state import (
    AHEAD,
    KEPT,
    SECOND,
    Told,
    is_over,
    newer,
    notified,
    posted,
    posted_once,
    truly,
)
from bridge.sinks.preview import previews
from tests.notifications import member, notification

NOW = 1_795_467_600.0  # 2026-11-23T21:00:00Z
NS = int(NOW) * SECOND


def told(**changes: Any) -> Told:
    (found,) = notified(notification(since=NOW - 300, at=NOW))
    return msgspec.structs.replace(found, **changes)


def test_what_fires_is_posted_with_an_end_four_minutes_ahead() -> None:
    """Alertmanager lets it go by itself when bridge is gone."""
    assert posted(told(), NS) == {
        "labels": {"alertname": "gateway-down", "gateway": "gw-yard"},
        "annotations": {"summary": "gw-yard has been offline"},
        "startsAt": "2026-11-23T21:00:00Z",
        "endsAt": "2026-11-23T21:04:00Z",
    }


def test_it_starts_when_it_fired_and_stays_so() -> None:
    """A repetition is the same alert; one that began anew is another."""
    first = told(at=NS)
    (again,) = newer({first.id: first}, [told(at=NS + 60 * SECOND)]).values()
    (other,) = newer({first.id: first}, [told(at=NS + 60 * SECOND, since=NS)]).values()
    late = NS + 90 * SECOND
    assert posted(again, late)["startsAt"] == "2026-11-23T21:00:00Z"
    assert posted(other, late)["startsAt"] == "2026-11-23T21:01:00Z"


def test_what_has_ended_is_posted_with_its_end() -> None:
    """Also long after it."""
    (found,) = notified(notification(status="resolved", since=NOW - 300, at=NOW, ends=NOW - 20))
    assert posted(found, NS + 600 * SECOND)["endsAt"] == "2026-11-23T20:59:40Z"


def test_a_device_has_its_application_among_the_labels() -> None:
    """And the alert's own labels, as the notification gives them."""
    labels = {"alertname": "silent", "device": "plant-a/m1", "application": "plant-a", "severity": "page"}
    (found,) = notified(notification(key="plant-a/m1", by="device", labels=labels, since=NOW, at=NOW))
    assert posted(found, NS)["labels"] == labels


def test_label_names_are_such_as_alertmanager_takes() -> None:
    """One that it does not would make it refuse the request; an empty value is no label there."""
    labels = {"alertname": "a", "site-name": "x", "2nd": "y", "empty": "", "": "z"}
    assert posted(told(labels=labels), NS)["labels"] == {
        "alertname": "a",
        "site_name": "x",
        "_2nd": "y",
        "_": "z",
    }


def test_a_group_is_its_members() -> None:
    """Each with labels and times of its own: Alertmanager makes groups itself."""
    members = [
        member("gw-roof", since=NOW - 60),
        member("gw-yard", since=NOW - 90, ends=NOW - 5),
    ]
    found = notified(notification(key="all", members=members, since=NOW - 90, at=NOW))
    assert [(each.key, each.labels["gateway"], bool(each.ends)) for each in found] == [
        ("gw-roof", "gw-roof", False),
        ("gw-yard", "gw-yard", True),
    ]
    assert len({each.id for each in found}) == 2


def test_what_is_overtaken_changes_nothing() -> None:
    """A firing that comes after its resolution, because its first attempt failed."""
    fires, ends = told(), told(at=NS + 60 * SECOND, ends=NS + 30 * SECOND)
    assert newer({ends.id: ends}, [fires]) == {}
    assert newer({fires.id: fires}, [ends]) == {ends.id: ends}
    assert newer({}, [fires]) == {fires.id: fires}


def test_what_the_alerts_no_longer_know_has_ended() -> None:
    """An alert taken out of the config has nobody who resolves it."""
    fires = told()
    assert truly(fires, [("gateway-down", "gw-yard")], NS) == fires
    assert truly(fires, None, NS) == fires
    assert truly(fires, [("gateway-down", "gw-roof")], NS).ends == NS
    ended = told(ends=NS - SECOND)
    assert truly(ended, [], NS) == ended


def test_what_has_ended_is_told_for_a_quarter_of_an_hour() -> None:
    """From its end, or from when that was known."""
    ended = told(at=NS, ends=NS - 60 * SECOND)
    assert not is_over(ended, NS + KEPT)
    assert is_over(ended, NS + KEPT + 1)
    assert not is_over(told(), NS + 10 * KEPT)


def test_an_event_that_is_no_notification_fires_by_being_there() -> None:
    """A rule may send to Alertmanager too: it lets go of what does not come again."""
    delivery = notification(since=NOW, at=NOW - 10)
    body = json.dumps(
        {"name": "gs.gateway.disconnect", "identifiers": [{"gateway_ids": {"gateway_id": "g"}}]}
    )
    event = msgspec.structs.replace(delivery.event, name="gs.gateway.disconnect", body=body.encode())
    plain = msgspec.structs.replace(delivery, event=event, rule="gone")
    assert notified(plain) == []
    found = posted_once(plain, NS)
    assert found["labels"]["alertname"] == "gone"
    assert (found["startsAt"], found["endsAt"]) == ("2026-11-23T20:59:50Z", "2026-11-23T21:04:00Z")


times = st.integers(0, 4_000_000_000 * SECOND)


@given(since=times, ends=st.just(0) | times, now=times)
def test_alertmanager_can_take_whatever_is_posted(since: int, ends: int, now: int) -> None:
    """No end before its start, which it refuses; what has ended ends no later than now, or it would fire."""
    found = posted(told(began=since, ends=ends), now)
    starts, stops = nanoseconds(found["startsAt"]), nanoseconds(found["endsAt"])
    assert starts <= stops
    assert starts <= now
    assert stops <= now if ends else stops == now + AHEAD


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=8), st.randoms())
def test_the_order_of_deliveries_makes_no_difference(story: list[tuple[int, bool]], random: Any) -> None:
    """Retries overtake each other; what is known in the end is the newest."""
    notices = [told(at=at, ends=at if ended else 0) for at, ended in dict(story).items()]
    known: dict[str, Told] = {}
    shuffled = list(notices)
    random.shuffle(shuffled)
    for each in shuffled:
        known |= newer(known, [each])
    assert [(each.at, each.ends) for each in known.values()] == (
        [max((each.at, each.ends) for each in notices)] if notices else []
    )


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_garbage_is_no_notification(data: Any) -> None:
    """Whatever stands in its data."""
    delivery = notification(since=NOW, at=NOW)
    body = json.dumps({"name": "bridge.alert.firing", "data": data}).encode()
    assert (
        notified(msgspec.structs.replace(delivery, event=msgspec.structs.replace(delivery.event, body=body)))
        == []
    )


def config(**keys: Any) -> AlertmanagerConfig:
    return AlertmanagerConfig.model_validate({"type": "alertmanager", "url": "http://am:9093"} | keys)


def test_the_path_of_the_api_is_added() -> None:
    """Behind that of a route prefix."""
    assert config().alerts_url == "http://am:9093/api/v2/alerts"
    assert config(url="https://x.example/am/").alerts_url == "https://x.example/am/api/v2/alerts"


def test_how_it_is_let_in() -> None:
    """Basic, bearer or not at all; either is hidden in answers."""
    assert "Authorization" not in config().headers()
    assert config(token="t0ken").headers()["Authorization"] == "Bearer t0ken"
    basic = config(username="ö", password="pässword")
    encoded = base64.b64encode("ö:pässword".encode()).decode()
    assert basic.headers()["Authorization"] == f"Basic {encoded}"
    assert {"pässword", encoded} <= set(basic.hidden())


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ({"url": "am:9093"}, "write a URL"),
        ({"url": "http://am:9093/api/v2/alerts"}, "write the address alone"),
        ({"url": "http://am:9093/api/v2"}, "write the address alone"),
        ({"url": "http://am:9093/?x=1"}, "write the address alone"),
        ({"url": "http://me:s3cret@am:9093"}, "keys of their own"),
        ({"username": "me"}, "belong together"),
        ({"password": "s3cret"}, "belong together"),
        ({"username": "me", "password": "s3cret", "token": "t"}, "set token, or"),
    ],
)
def test_a_mistake_says_what_to_do(keys: dict[str, str], advice: str) -> None:
    """And repeats no value."""
    with pytest.raises(ValidationError, match=advice) as caught:
        config(**keys)
    assert "s3cret" not in str(caught.value)


def test_what_would_be_posted_can_be_seen_before() -> None:
    """`explain` and the page show the very document."""
    (shown,) = previews(config(), notification(since=NOW - 300, at=NOW), {})
    assert json.loads(shown.body) == [posted(told(), NS)]
    assert (shown.sink, shown.error) == ("am", "")
