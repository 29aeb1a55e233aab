"""The doctor's questions to The Things Stack: key, rights, streams, history, clock, notifications."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import anyio

from bridge.alerts import Alert
from bridge.catalogue import EventName
from bridge.commands.catalogue import entries, reach
from bridge.decode import StreamStart
from bridge.doctor import (
    Carried,
    Finding,
    Stored,
    Want,
    budget,
    clock,
    excess,
    expiry,
    listing,
    strangers,
    window,
)
from bridge.doctor import reach as reached
from bridge.doctor import rights as judged_rights
from bridge.errors import SourceError, StartError
from bridge.event import KINDS, Entity, Event, Kind
from bridge.rules import Rule
from bridge.rules.matcher import Matcher
from bridge.sources.api import Api, AuthInfo
from bridge.sources.discovery import discover
from bridge.sources.models import TtsSourceConfig
from bridge.sources.names import NAME_ERRORS
from bridge.sources.notification import NotificationsSourceConfig
from bridge.sources.notifications import CREATED
from bridge.sources.plan import BACKFILL, carriers, culprits, owner
from bridge.sources.registry import connected
from bridge.sources.upstream import Upstream

STARTS_WITHIN = 10.0  # seconds until the start event: more, and something holds the answer back
QUIET = 1.0  # seconds without another stored event after which a history has come
READ_WITHIN = 15.0  # seconds for one history
HISTORIES = 2 * BACKFILL  # entities whose history is looked at
ASKED = 20  # entities whose rights are asked for
TRIED = 200  # identifiers of the stream that is tried
EXCLUDED = 5  # entities that are left out of it before the doctor gives up
DATE = 1_000_000_000  # ns: the resolution of a Date header
NO_STORE = "Events storage is not enabled"

Now = Callable[[], float]


async def tts(
    name: str, config: TtsSourceConfig, wants: Sequence[Want], names: Sequence[str], now: Now
) -> AsyncIterator[Finding]:
    """Everything about one `type: tts` source; *names* are what it would ask for, empty for all."""
    about = f"source {name}"
    try:
        async with connected(config) as (upstream, api):
            before = int(now() * 1e9)
            key = await auth(about, api)
            if isinstance(key, Finding):
                yield key
                return
            async for each in _examined(about, config, upstream, api, key, wants, names, before, now):
                yield each
    except StartError as error:
        yield Finding(about, "certificates", "wrong", str(error), "correct tls")


async def _examined(
    about: str,
    config: TtsSourceConfig,
    upstream: Upstream,
    api: Api,
    key: AuthInfo,
    wants: Sequence[Want],
    names: Sequence[str],
    before: int,
    now: Now,
) -> AsyncIterator[Finding]:
    after = int(now() * 1e9)
    for each in key_findings(about, key, after):
        yield each
    if key.server_ns is not None:
        yield clock(about, key.server_ns, before, after, DATE)
    found = await discover(api, config.scope)
    for what, failed in found.failed.items():
        advice = "give the key the right to list them, or write the identifiers out"
        yield Finding(about, "scope", "wrong", f"{what} cannot be listed: {failed}", advice)
    followed = sorted(found.entities, key=lambda each: (KINDS.index(each.kind), each.id))
    for each in strangers(about, key.owner, followed):
        yield each
    if not followed:
        yield Finding(about, "scope", "wrong", "the key sees nothing of identifiers", "correct identifiers")
        return
    granted = await rights_on(api, followed)
    for each in judged_rights(about, wants, carried(), granted):
        yield each
    for each in reached(about, wants, carried(), {entity.kind for entity in followed}):
        yield each
    usable = [each for each in followed if owner(each) not in granted or granted[owner(each)]]
    async for each in streams(about, config, upstream, usable, names, now):
        yield each


async def auth(about: str, api: Api) -> AuthInfo | Finding:
    """What the key is, or why nothing can be asked."""
    try:
        return await api.auth_info()
    except SourceError as error:
        if error.kind in ("refused", "rejected"):
            advice = "make a new API key in the Console, and put it where api_key points"
            return Finding(about, "key", "wrong", f"the server refuses it: {error}", advice)
        if error.kind == "rate_limited":
            return Finding(about, "rate limit", "wrong", str(error), "wait, or raise the server's limit")
        return Finding(
            about, "server", "wrong", str(error), "correct url, or see to the network and the server"
        )


def key_findings(about: str, key: AuthInfo, now_ns: int) -> list[Finding]:
    if key.owner is None:
        says = "the server does not say whose key it is"
        return [Finding(about, "key", "wrong", says, "use an API key (NNSXS.…) as api_key")]
    found = [Finding(about, "key", "ok", f"that of {key.owner}")]
    return [*found, *expiry(about, key.expires_ns, now_ns), *excess(about, key.is_admin, key.rights)]


async def rights_on(api: Api, followed: Sequence[Entity]) -> dict[Entity, frozenset[str]]:
    """The key's rights on what is *followed*, as far as it is asked; one that cannot be told is left out."""
    granted: dict[Entity, frozenset[str]] = {}
    for entity in list(dict.fromkeys(map(owner, followed)))[:ASKED]:
        try:
            granted[entity] = await api.rights(entity)
        except SourceError as error:
            if error.kind in ("refused", "rejected"):
                granted[entity] = frozenset()
    return _with_devices(granted, followed)


def _with_devices(
    granted: dict[Entity, frozenset[str]], followed: Sequence[Entity]
) -> dict[Entity, frozenset[str]]:
    """The devices of an application count as one more entity, on which its rights hold."""
    for each in followed:
        above = owner(each)
        if each.kind == "device" and above in granted and granted[above]:
            granted.setdefault(Entity("device", f"{above.id}/*"), granted[above])
    return granted


@dataclass(frozen=True, slots=True)
class Tried:
    """The stream that opened: its start on the server's clock, what it warned of, and the findings."""

    findings: tuple[Finding, ...]
    start_ns: int = 0
    warnings: tuple[str, ...] = ()


async def streams(
    about: str,
    config: TtsSourceConfig,
    upstream: Upstream,
    usable: Sequence[Entity],
    names: Sequence[str],
    now: Now,
) -> AsyncIterator[Finding]:
    """A live stream is opened as the source would, then a few histories are read."""
    if not usable:
        return
    tried = await live(about, upstream, usable[:TRIED], names, now)
    for each in tried.findings:
        yield each
    if not tried.start_ns:
        return
    if NO_STORE in tried.warnings:
        advice = "set events.backend: redis and events.redis.store.enable: true on the server"
        says = "the server keeps none: what is lost in an interruption cannot be read again"
        yield Finding(about, "history", "wrong", says, advice)
        return
    yield Finding(about, "history", "ok", "the server keeps events and replays them")
    try:
        yield window(about, await stored(upstream, usable), tried.start_ns, config.recycle)
    except SourceError as error:
        yield Finding(about, "window", "unknown", str(error))


async def live(
    about: str, upstream: Upstream, asked: Sequence[Entity], names: Sequence[str], now: Now
) -> Tried:
    """Open a stream on *asked*; entities and names the server refuses are told and left out."""
    findings: list[Finding] = []
    rest, wanted = list(asked), list(names)
    for _ in range(EXCLUDED):
        try:
            start_ns, warnings, found = await _opened(about, upstream, rest, wanted, now)
            return Tried((*findings, *found), start_ns, warnings)
        except SourceError as error:
            told = _refused(about, error, rest, wanted)
            if told is None:
                return Tried((*findings, _no_stream(about, error)))
            findings.append(told[0])
            rest, wanted = told[1], told[2]
            if not rest:
                break
    return Tried(tuple(findings))


async def _opened(
    about: str, upstream: Upstream, asked: Sequence[Entity], names: Sequence[str], now: Now
) -> tuple[int, tuple[str, ...], list[Finding]]:
    """Raises SourceError."""
    after = int(now() * 1e9) - 60 * DATE  # far enough back not to silence the stream, wherever our clock is
    with anyio.move_on_after(STARTS_WITHIN):
        async with upstream.open(asked, after, names) as stream:
            async for frame in stream.frames():
                if isinstance(frame, StreamStart):
                    found = [Finding(about, "stream", "ok", f"opens, with {len(asked)} identifiers")]
                    if stream.budget:
                        found.append(budget(about, stream.budget.limit, stream.budget.available))
                    return frame.time_ns, stream.warnings, found
        raise SourceError("the stream ended before its start event")
    says = f"no start event within {STARTS_WITHIN:g} s: a proxy on the way holds the answer back"
    return (
        0,
        (),
        [Finding(about, "stream", "wrong", says, "switch its buffering off (nginx: proxy_buffering off)")],
    )


def _refused(
    about: str, error: SourceError, asked: Sequence[Entity], names: Sequence[str]
) -> tuple[Finding, list[Entity], list[str]] | None:
    """What the server refused of the request, and the request without it; None if it is not that."""
    if error.name in NAME_ERRORS and names:
        said = {str(value) for value in error.attributes.values()}
        kept = [each for each in names if each not in said and each.strip("/") not in said]
        says = f"the server does not know {listing(sorted(said)) or 'one of the event names'}"
        advice = "rules for it never match on this server: correct the name, or upgrade the server"
        finding = Finding(about, "names", "wrong", says, advice)
        return finding, list(asked), kept if len(kept) < len(names) else []
    guilty = culprits(error, asked)
    if not guilty:
        return None
    says = f"the stream is refused for {listing(map(str, guilty))}: {error}"
    finding = Finding(about, "scope", "wrong", says, "correct identifiers: one wrong entity stops them all")
    return finding, [each for each in asked if each not in guilty], list(names)


def _no_stream(about: str, error: SourceError) -> Finding:
    if error.kind == "rate_limited":
        wait = f" for {error.retry_after:g} s" if error.retry_after else ""
        says = f"the key may open no stream{wait}: {error}"
        return Finding(about, "rate limit", "wrong", says, "raise the limit of Events/Stream on the server")
    return Finding(about, "stream", "wrong", f"does not open: {error}", "see to the server")


async def stored(upstream: Upstream, usable: Sequence[Entity]) -> dict[Entity, Stored]:
    """What is kept of a few entities, read by short streams as bridge does; raises SourceError."""
    found: dict[Entity, Stored] = {}
    sample = _sample(usable)
    for at in range(0, len(sample), BACKFILL):
        found |= await _history(upstream, sample[at : at + BACKFILL])
    return found


def _sample(usable: Sequence[Entity]) -> list[Entity]:
    """A few entities, of every kind in turn."""
    by_kind = [[each for each in usable if each.kind == kind] for kind in KINDS]
    turns = [each[turn] for turn in range(HISTORIES) for each in by_kind if turn < len(each)]
    return turns[:HISTORIES]


async def _history(upstream: Upstream, asked: Sequence[Entity]) -> dict[Entity, Stored]:
    counts: dict[Entity, Stored] = dict.fromkeys(asked, Stored(0))
    propagates = {name: each.propagates_to_application for name, each in entries().items()}
    seen: set[str] = set()
    start_ns = 0
    end = anyio.current_time() + READ_WITHIN
    with anyio.move_on_after(READ_WITHIN) as reading:
        async with upstream.open(asked, None, ()) as stream:
            async for frame in stream.frames():
                if isinstance(frame, StreamStart):
                    start_ns = frame.time_ns
                elif isinstance(frame, Event) and frame.unique_id not in seen and frame.time_ns < start_ns:
                    seen.add(frame.unique_id)
                    for entity in carriers(frame, counts, propagates):
                        counts[entity] = _counted(counts[entity], frame.time_ns)
                reading.deadline = min(end, anyio.current_time() + QUIET)
    return counts


def _counted(before: Stored, at_ns: int) -> Stored:
    oldest = min(before.oldest_ns or at_ns, at_ns)
    return Stored(before.count + 1, oldest, max(before.newest_ns, at_ns))


async def notifications(name: str, config: NotificationsSourceConfig, now: Now) -> AsyncIterator[Finding]:
    """Everything about one `type: tts-notifications` source."""
    about = f"source {name}"
    user = Entity("user", config.user)
    try:
        async with connected(config) as (upstream, api):
            before = int(now() * 1e9)
            key = await auth(about, api)
            if isinstance(key, Finding):
                yield key
                return
            after = int(now() * 1e9)
            for each in key_findings(about, key, after):
                yield each
            if key.server_ns is not None:
                yield clock(about, key.server_ns, before, after, DATE)
            yield await _inbox(about, api, config.user)
            for each in (await live(about, upstream, [user], [CREATED], now)).findings:
                yield each
    except StartError as error:
        yield Finding(about, "certificates", "wrong", str(error), "correct tls")


async def _inbox(about: str, api: Api, user: str) -> Finding:
    try:
        page = await api.notifications(user, limit=1)
    except SourceError as error:
        advice = f"use a key of user {user} with the right RIGHT_USER_NOTIFICATIONS_READ"
        return Finding(about, "notifications", "wrong", f"cannot be read: {error}", advice)
    return Finding(about, "notifications", "ok", f"{page.total} in all")


def wants_of(rules: Iterable[Rule], alerts: Iterable[Alert]) -> list[Want]:
    """What each of them waits for."""
    found = [_want("rule", rule.name, [rule.match]) for rule in rules]
    return [*found, *(_want("alert", alert.name, list(alert.matchers.values())) for alert in alerts)]


def _want(kind: Literal["rule", "alert"], name: str, matchers: Sequence[Matcher]) -> Want:
    names = tuple(name for name in entries() if any(matcher.may_be_named(name) for matcher in matchers))
    return Want(name, names, all(matcher.name_patterns() for matcher in matchers), kind)


def carried() -> Mapping[str, Carried]:
    return {
        name: Carried(name, frozenset(_kinds(each)), frozenset(each.rights))
        for name, each in entries().items()
    }


def _kinds(each: EventName) -> Collection[Kind]:
    """The streams that carry an event of this name."""
    found: set[Kind] = set()
    how = reach(each)
    if how == "yes":
        found.add("application")
    if how == "devices" or (how == "yes" and each.propagates_to_application):
        found.add("device")
    for kind in ("gateway", "organization", "user", "client"):
        if how == "no" and any(right.startswith(f"RIGHT_{kind.upper()}_") for right in each.rights):
            found.add(kind)
    return found
