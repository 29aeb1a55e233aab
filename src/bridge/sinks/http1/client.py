"""A client for one URL: connections that are kept, and how new ones are made.

Addresses are judged one by one, each the very one that is connected to; then TLS, through a proxy's tunnel
if there is one.  Nothing comes from the environment, nothing is followed, no cookies are kept.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Protocol, TypeAlias

import anyio

from bridge.errors import AnswerError
from bridge.sinks.http1 import Origin, Response, connect_request, request, request_line, target_of
from bridge.sinks.http1.connection import Connection, Tunnelling

STAGGER = 0.25  # seconds an address has before the next is tried beside it (RFC 8305 §8)
REMEMBERED = 10.0  # seconds the addresses of a name are used again
IDLE = 15.0  # seconds a connection is kept for another request, unless the receiver says less
MARGIN = 1.0  # seconds before a receiver closes an idle connection, in which a request could meet the close
LISTENING = 0.5  # seconds a server has to refuse a connection on which nothing is written
CLOSING = 1.0  # seconds for connections to be gone in the end


class BlockedError(OSError):
    """The guard lets none of the addresses be reached; the text says why not the first."""


class ProxyError(OSError):
    """A proxy refused the tunnel with *status*."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class Resolver(Protocol):
    """Looks names up; each found address is at `host`, as text."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> Sequence[Mapping[str, object]]: ...


@dataclass(frozen=True, slots=True)
class Address:
    """One that a name stands for; *socket_address* is what `connect` takes."""

    family: int
    text: str
    socket_address: tuple[object, ...]


Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[Address]]]


async def system(host: str, port: int) -> Sequence[Address]:
    """The addresses of *host* by the system's resolver; raises OSError (`gaierror`)."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [Address(family, str(at[0]), at) for family, _, _, _, at in found]


def through(resolver: Resolver) -> Lookup:
    async def look_up(host: str, port: int) -> Sequence[Address]:
        texts = [str(each["host"]) for each in await resolver.resolve(host, port)]
        return [
            Address(socket.AF_INET6 if ":" in text else socket.AF_INET, text, (text, port)) for text in texts
        ]

    return look_up


def in_turn(addresses: Sequence[Address]) -> list[Address]:
    """IPv6 and IPv4 by turns, beginning with the kind the resolver puts first (RFC 8305 §4)."""
    first = addresses[0].family if addresses else 0
    same = [each for each in addresses if each.family == first]
    other = [each for each in addresses if each.family != first]
    return [each for each in chain.from_iterable(zip_longest(same, other)) if each is not None]


@dataclass(frozen=True, slots=True)
class Route:
    """How requests come to a URL: *blocked* says why an address may not be reached, None if it may."""

    url: str
    blocked: Callable[[str], str | None]
    tls: ssl.SSLContext
    proxy: str | None = None
    lookup: Lookup = system


class Client:
    """Posts to one URL.  At most *keep_idle* connections are kept between requests; *headers* go with each.

    *timeout* is for a whole attempt, *connect* for name, connection, tunnel and TLS in it, in seconds; *keep*
    bytes of each answer are kept. Raises ValueError for a URL that is none.
    """

    def __init__(
        self,
        route: Route,
        *,
        timeout: float,
        connect: float,
        keep_idle: int,
        keep: int,
        headers: Mapping[str, str],
    ) -> None:
        self._route = route
        self._to = Origin.of(route.url)
        self._proxy = Origin.of(route.proxy) if route.proxy else None
        self._timeout = timeout
        self._connect_within = min(connect, timeout)
        self._keep_idle = keep_idle
        self._keep = keep
        self._user_agent = headers.get("User-Agent", "")
        self._beginning = self._line(headers)
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._remembered: tuple[float, Sequence[Address]] = (0.0, ())

    def _line(self, headers: Mapping[str, str]) -> bytes:
        """What every request begins with; to a proxy without a tunnel the whole URL (RFC 9112 §3.2.2)."""
        target, fields = target_of(self._route.url), {"Host": self._to.authority, **headers}
        if self._to.authorization:
            fields["Authorization"] = self._to.authorization
        if self._proxy and self._to.scheme == "http":
            target = f"http://{self._to.authority}{target}"
            if self._proxy.authorization:
                fields["Proxy-Authorization"] = self._proxy.authorization
        return request_line("POST", target, fields)

    async def post(self, body: bytes, headers: Mapping[str, str], head: bytes = b"") -> Response:
        """The answer to one POST with *headers* and *head*, which is more of them, by `fields`.

        Raises OSError (TimeoutError among them), AnswerError or ValueError.

        If a connection that was kept turns out to be closed before any answer, the request is written once
        more on a new one: the receiver most likely closed it as we wrote, and if not, `webhook-id` tells it
        (RFC 9110 §9.2.2).
        """
        whole = request(self._beginning, headers, body, head)
        now = self._loop.time()
        deadline = now + self._timeout
        connection = self._kept(now)
        if connection is not None:
            try:
                return self._ended(connection, await connection.exchange(whole, deadline))
            except TimeoutError:
                raise
            except (OSError, AnswerError):
                if not connection.was_silent:
                    raise
        connection = await self._connect(deadline)
        try:
            return self._ended(connection, await connection.exchange(whole, deadline))
        except ConnectionError:
            if self._to.scheme == "https":
                await self._refusal(deadline)
            raise

    async def _refusal(self, deadline: float) -> None:
        """Raises what TLS says to a connection on which nothing is written, if it says something soon.

        In TLS 1.3 a server tells what it has against our certificate when our side of the handshake is over
        (RFC 8446 §4.4.2.4). If it has closed by the time a request is written, the write learns of a reset
        and no more.
        """
        connection = await self._connect(deadline)
        with anyio.move_on_after(LISTENING):
            await connection.gone.wait()
        connection.abort()
        if isinstance(connection.lost, ssl.SSLError):
            raise connection.lost

    def _ended(self, connection: Connection, response: Response) -> Response:
        """*response*; its connection is kept if it may be."""
        if not response.reusable or not connection.is_open or len(self._idle) >= self._keep_idle:
            connection.abort()
        else:
            idle = IDLE if response.idle is None else min(IDLE, response.idle - MARGIN)
            connection.idle_until = self._loop.time() + idle
            self._idle.append(connection)
        return response

    def _kept(self, now: float) -> Connection | None:
        """The one that was used last, so that the others may grow old and go."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                if now < connection.idle_until:
                    return connection
                connection.abort()
        return None

    async def close(self) -> None:
        """Ends every connection, also those in use, and waits until they are gone."""
        for each in self._open:
            each.abort()
        with anyio.move_on_after(CLOSING, shield=True):
            for each in list(self._open):
                await each.gone.wait()

    # New connections

    async def _connect(self, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        self._open = {each for each in self._open if not each.gone.is_set()}
        with anyio.fail_after(min(self._connect_within, max(0.0, deadline - loop.time()))):
            connected = await self._connected(self._proxy or self._to)
            connection = Connection(self._keep)
            try:
                await self._speak(connected, connection)
            except BaseException:
                connection.abort()
                connected.close()
                raise
        self._open.add(connection)
        return connection

    async def _speak(self, connected: socket.socket, connection: Connection) -> None:
        """Make *connection* of a socket: TLS where the URL says so, in a tunnel where there is a proxy."""
        loop, tls, name = asyncio.get_running_loop(), self._route.tls, server_name(self._to)
        secured = self._to.scheme == "https"
        if self._proxy is not None and secured:
            await self._tunnel(connected, connection, self._proxy)
        elif self._proxy is not None and self._proxy.scheme == "https":
            await loop.create_connection(
                lambda: connection, sock=connected, ssl=tls, server_hostname=server_name(self._proxy)
            )
        elif secured:
            await loop.create_connection(lambda: connection, sock=connected, ssl=tls, server_hostname=name)
        else:
            await loop.create_connection(lambda: connection, sock=connected)

    async def _tunnel(self, connected: socket.socket, connection: Connection, proxy: Origin) -> None:
        loop, tls = asyncio.get_running_loop(), self._route.tls
        secured = proxy.scheme == "https"
        transport, tunnelling = await loop.create_connection(
            Tunnelling,
            sock=connected,
            ssl=tls if secured else None,
            server_hostname=server_name(proxy) if secured else None,
        )
        try:
            transport.write(connect_request(self._to, self._user_agent, proxy.authorization))
            status = await tunnelling.status
            if not 200 <= status < 300:
                raise ProxyError(status)
            inner = await loop.start_tls(transport, connection, tls, server_hostname=server_name(self._to))
            if inner is None:
                raise AnswerError("the proxy closed the connection")
            connection.connection_made(inner)
        except BaseException:
            transport.abort()
            raise

    async def _connected(self, to: Origin) -> socket.socket:
        """A socket connected to the first address of *to* that may be reached and answers."""
        addresses = await self._addresses(to)
        refusals = [self._route.blocked(each.text) for each in addresses]
        if addresses and all(refusals):
            raise BlockedError(refusals[0])
        return await race(
            [each for each, refused in zip(addresses, refusals, strict=True) if not refused], reach, STAGGER
        )

    async def _addresses(self, to: Origin) -> Sequence[Address]:
        now = asyncio.get_running_loop().time()
        until, known = self._remembered
        if now < until:
            return known
        try:
            found = in_turn(await self._route.lookup(to.host, to.port))
        except UnicodeError:
            found = []
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        self._remembered = now + REMEMBERED, found
        return found


def server_name(to: Origin) -> str:
    """Whose certificate is wanted: a name without the dot that may end it (RFC 6066 §3)."""
    return to.host.partition("%")[0].rstrip(".")


async def reach(address: Address) -> socket.socket:
    """A socket connected to *address*; raises OSError."""
    made = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, address.socket_address)
    except BaseException:
        made.close()
        raise
    return made


async def race(
    addresses: Sequence[Address], attempt: Callable[[Address], Awaitable[socket.socket]], stagger: float
) -> socket.socket:
    """The first socket that connects: an address begins when the one before failed, or *stagger* seconds on.

    Raises the OSError of the first address if none connects.
    """
    won: list[socket.socket] = []
    errors: dict[Address, OSError] = {}

    async def run(address: Address, failed: anyio.Event) -> None:
        try:
            connected = await attempt(address)
        except OSError as error:
            errors[address] = error
            failed.set()
            return
        if won:
            connected.close()
            return
        won.append(connected)
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for address in addresses:
                failed = anyio.Event()
                tasks.start_soon(run, address, failed)
                with anyio.move_on_after(stagger):
                    await failed.wait()
    except BaseException:
        for each in won:
            with suppress(OSError):
                each.close()
        raise
    if won:
        return won[0]
    raise next(errors[each] for each in addresses if each in errors)
