"""Alerts in Slack: the first notification of a key opens a thread, later ones reply in it.

Recovery also edits the message that opened it, so that whoever scrolls by sees that it is over. Which message
that is survives a restart in the sink's memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import anyio
import msgspec
import structlog

from bridge.delivery import Delivered, Delivery, Outcome
from bridge.errors import OutboxError
from bridge.sinks.memory import Memory
from bridge.sinks.slack.answers import AUTH, LIMITED, SERVER

log = structlog.get_logger()

OVER = ":white_check_mark: "
"""Before the text of the recovery, in the message that opened the thread."""
KEPT = 30 * 86_400 * 1_000_000_000  # ns a thread that is over is remembered
CLOSED = frozenset({"cannot_reply_to_message", "thread_not_found", "restricted_action_thread_locked"})
"""Slack's words for a thread that takes no reply: a new message takes its place."""


class Thread(msgspec.Struct, frozen=True, omit_defaults=True):
    """The thread of one key of one alert. *to* is the channel as the config had it."""

    to: str
    channel: str
    """Its id, which `chat.update` wants."""
    ts: str
    """Of the message that opened it."""
    last: str
    """The unique_id of the last notification in it."""
    at: int
    """The time of that, ns."""
    is_shared: bool = False
    """Opened by a digest: the message stands for others too and is not edited."""
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """What Slack answered to a call that worked, or *outcome* and its *word* where it did not."""

    outcome: Outcome
    word: str = ""
    channel: str = ""
    ts: str = ""


Say: TypeAlias = Callable[[str | None], Awaitable[Said]]
"""Post a message, in the thread of this ts."""
Edit: TypeAlias = Callable[[str, str, str], Awaitable[Said]]
"""Replace the text of a message: channel id, ts, text."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification on its way: of what, whether it resolves, when."""

    id: str
    is_resolved: bool
    unique_id: str
    at: int


class _Told(msgspec.Struct):
    alert: str
    key: str


class _Event(msgspec.Struct):
    data: _Told


def notice(delivery: Delivery) -> Notice | None:
    """What *delivery* notifies of; None if it is an event as any other."""
    event = delivery.event
    if event.name not in ("bridge.alert.firing", "bridge.alert.resolved"):
        return None
    try:
        told = msgspec.json.decode(event.body, type=_Event).data
    except msgspec.DecodeError:
        return None
    id_ = msgspec.json.encode([delivery.rule, told.alert, told.key]).decode()
    return Notice(id_, event.name.endswith("resolved"), event.unique_id, event.time_ns)


class Threads:
    """The threads of one sink in *channel*."""

    def __init__(self, name: str, channel: str, memory: Memory, edit: Edit) -> None:
        self._name = name
        self._channel = channel
        self._memory = memory
        self._edit = edit
        self._threads: dict[str, Thread] | None = None
        self._lock = anyio.Lock()

    async def tell(self, told: Sequence[tuple[Delivery, str]], say: Say) -> Outcome:
        """Post what *say* posts for *told*, deliveries and their texts, in the thread it belongs to."""
        notices = [(found, text) for delivery, text in told if (found := notice(delivery))]
        if not notices:
            return (await say(None)).outcome
        async with self._lock:
            threads = await self._known()
            if len(told) == 1:
                return await self._one(*notices[0], threads, say)
            return await self._many(notices, threads, say)

    async def _one(self, about: Notice, text: str, threads: Mapping[str, Thread], say: Say) -> Outcome:
        thread = threads.get(about.id)
        if thread is not None and thread.last == about.unique_id:
            return Delivered(200)  # a kill came between Slack's answer and the store's
        if thread is None or (thread.is_over and about.at > thread.at):
            return await self._open(about, say)
        edited = await self._edited(about, text, thread)
        if not isinstance(edited, Delivered):
            return edited
        said = await say(thread.ts)
        if said.word in CLOSED:
            return await self._open(about, say)
        if isinstance(said.outcome, Delivered):
            await self._note({about.id: after(thread, about)})
        return said.outcome

    async def _open(self, about: Notice, say: Say) -> Outcome:
        said = await say(None)
        if isinstance(said.outcome, Delivered) and said.ts:
            await self._note({about.id: self._opened(about, said)})
        return said.outcome

    async def _many(
        self, notices: Sequence[tuple[Notice, str]], threads: Mapping[str, Thread], say: Say
    ) -> Outcome:
        """A digest opens the thread of what has none; what it says is over is edited too."""
        for about, text in notices:
            thread = threads.get(about.id)
            if thread is not None and not thread.is_over:
                edited = await self._edited(about, text, thread)
                if not isinstance(edited, Delivered):
                    return edited
        said = await say(None)
        if isinstance(said.outcome, Delivered):
            found = dict(threads)
            for about, _ in notices:
                thread = found.get(about.id)
                if thread is not None and not (thread.is_over and about.at > thread.at):
                    found[about.id] = after(thread, about)
                elif said.ts:
                    found[about.id] = self._opened(about, said, is_shared=True)
            await self._note({about.id: found[about.id] for about, _ in notices if about.id in found})
        return said.outcome

    async def _edited(self, about: Notice, text: str, thread: Thread) -> Outcome:
        """*text* in the place of what opened *thread*, if *about* ends it; done again, it changes nothing.

        A message that cannot be edited any more keeps nobody from being told.
        """
        if not about.is_resolved or thread.is_shared or about.at < thread.at:
            return Delivered()
        said = await self._edit(thread.channel, thread.ts, OVER + text)
        if isinstance(said.outcome, Delivered) or not said.word or said.word in AUTH | LIMITED | SERVER:
            return said.outcome
        log.warning("message of an alert not edited", sink=self._name, error=said.word)
        return Delivered()

    def _opened(self, about: Notice, said: Said, *, is_shared: bool = False) -> Thread:
        return Thread(
            self._channel,
            said.channel or self._channel,
            said.ts,
            about.unique_id,
            about.at,
            is_shared,
            about.is_resolved,
        )

    async def _known(self) -> dict[str, Thread]:
        """Those of the channel the config names now."""
        if self._threads is None:
            try:
                rows = await self._memory.recall()
            except OutboxError as error:
                log.warning("threads cannot be read", sink=self._name, error=str(error))
                return {}
            self._threads = {}
            for id_, row in rows.items():
                thread = read(row)
                if thread is not None and thread.to == self._channel:
                    self._threads[id_] = thread
        return self._threads

    async def _note(self, changed: Mapping[str, Thread]) -> None:
        """Slack has it: that it cannot be noted is no reason to say it again."""
        threads = self._threads if self._threads is not None else {}
        threads |= changed
        latest = max(each.at for each in changed.values())
        old = [id_ for id_, each in threads.items() if each.is_over and each.at + KEPT < latest]
        for id_ in old:
            del threads[id_]
        rows: dict[str, bytes | None] = {id_: msgspec.json.encode(each) for id_, each in changed.items()}
        try:
            await self._memory.keep(rows | dict.fromkeys(old))
        except OutboxError as error:
            log.warning("thread of an alert not noted", sink=self._name, error=str(error))


def after(thread: Thread, about: Notice) -> Thread:
    """*thread* with *about* in it; what is older than its last changes nothing."""
    if about.at < thread.at:
        return thread
    return msgspec.structs.replace(thread, last=about.unique_id, at=about.at, is_over=about.is_resolved)


def read(row: bytes) -> Thread | None:
    try:
        return msgspec.json.decode(row, type=Thread)
    except msgspec.DecodeError:
        return None
