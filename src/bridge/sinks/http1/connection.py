"""One connection to an HTTP receiver: writes a request, waits for its answer, one after another."""

from __future__ import annotations

import asyncio
from typing import cast

from bridge.errors import AnswerError
from bridge.sinks.http1 import Reader, Response, connect_status

CLOSED = "the connection was closed before an answer"


class Connection(asyncio.Protocol):
    """*keep* bytes of each answer's body are kept.

    Its timer is not set and cleared with each request: one that is due looks whether it still matters.
    """

    def __init__(self, keep: int) -> None:
        self.is_open = False
        self.idle_until = 0.0
        """Until when (the loop's time) another request may be written."""
        self.gone = asyncio.Event()
        self.lost: Exception | None = None
        """Why it is gone, if something went wrong."""
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(keep)
        self._waiter: asyncio.Future[Response] | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def exchange(self, request: bytes, deadline: float) -> Response:
        """The answer to *request*; *deadline* in the loop's time.

        Raises TimeoutError, OSError or AnswerError. The connection is closed unless the answer is reusable.
        """
        if self._transport is None or not self.is_open:
            raise self.lost or AnswerError(CLOSED)
        waiter: asyncio.Future[Response] = self._loop.create_future()
        self._waiter = waiter
        self._deadline = deadline
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._due)
        self._reader.expect()
        self._transport.write(request)
        try:
            return await waiter
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiter = None

    @property
    def was_silent(self) -> bool:
        """Did nothing of an answer to the last request come?"""
        return not self._reader.has_begun

    def abort(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _end(self, response: Response) -> None:
        """An answer to a request that is not yet sent whole is the last one here."""
        if not response.reusable or (self._transport and self._transport.get_write_buffer_size()):
            self.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(response)

    def _fail(self, error: Exception) -> None:
        self.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _due(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._due)
            return
        response = self._reader.end()
        if response is None:
            self._fail(TimeoutError())
        else:
            self._end(response)

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.abort()  # nobody asked: the next answer could be taken for that of another request
            return
        try:
            response = self._reader.feed(data)
        except AnswerError as error:
            self._fail(error)
        else:
            if response is not None:
                self._end(response)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open, self.lost = False, exc
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiter is not None and not self._waiter.done():
            response = self._reader.end()
            if response is None:
                self._waiter.set_exception(exc or AnswerError(CLOSED))
            else:
                self._waiter.set_result(response)
        self.gone.set()


class Tunnelling(asyncio.Protocol):
    """The first words with a proxy: *status* is its answer to CONNECT."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self.status.done():
            return
        try:
            status = connect_status(self._head)
        except AnswerError as error:
            self.status.set_exception(error)
        else:
            if status is not None:
                self.status.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.status.done():
            self.status.set_exception(exc or AnswerError("the proxy closed the connection"))
