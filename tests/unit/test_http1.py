"""HTTP/1.1 without a socket: what goes out, and what is made of what comes back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.errors import AnswerError
from bridge.sinks.http1 import (
    LONGEST_BODY,
    LONGEST_HEAD,
    Origin,
    Reader,
    Response,
    connect_request,
    connect_status,
    request,
    request_line,
    target_of,
)

KEEP = 16

chunked = st.lists(st.binary(min_size=1, max_size=40), max_size=5).map(
    lambda parts: b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
)
plain = st.binary(max_size=60)
names = st.sampled_from(["Server", "X-A", "Date", "Retry-After", "Keep-Alive", "Connection"])
values = st.sampled_from(["x", "timeout=5, max=100", "close", "keep-alive", "30"])
heads = st.lists(st.tuples(names, values), max_size=4)


interim = st.sampled_from([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 X\r\nLink: a\r\n\r\n"])


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Answers as servers send them, some with 1xx ones before."""
    early = b"".join(draw(st.lists(interim, max_size=3)))
    status = draw(st.sampled_from([200, 201, 202, 301, 400, 401, 413, 429, 500, 503, 599]))
    fields = "".join(f"{name}: {value}\r\n" for name, value in draw(heads)).encode()
    if draw(st.booleans()):
        return b"%bHTTP/1.1 %d X\r\n%bTransfer-Encoding: chunked\r\n\r\n%b" % (
            early,
            status,
            fields,
            draw(chunked),
        )
    body = draw(plain)
    return b"%bHTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (early, status, fields, len(body), body)


def fed(*chunks: bytes) -> Response | None:
    reader = Reader(KEEP)
    for chunk in chunks:
        response = reader.feed(chunk)
        if response is not None:
            return response
    return reader.end()


@given(answer=answers(), cuts=st.lists(st.integers(0, 400)))
def test_any_chunks_of_an_answer_are_the_same_answer(answer: bytes, cuts: list[int]) -> None:
    """TCP cuts where it likes."""
    places = sorted({0, len(answer), *(min(cut, len(answer)) for cut in cuts)})
    assert fed(*(answer[a:b] for a, b in pairwise(places))) == fed(answer)


@given(answer=answers())
def test_an_answer_byte_by_byte_is_complete_with_its_last_byte(answer: bytes) -> None:
    """Not one earlier, and it needs no further one."""
    reader = Reader(KEEP)
    found = [reader.feed(answer[i : i + 1]) for i in range(len(answer))]
    assert found[-1] is not None
    assert found[:-1] == [None] * (len(answer) - 1)


@given(chunks=st.lists(st.binary(max_size=80), max_size=8))
@example(chunks=[b"HTTP/1.1 000 \r\n\r\n"])
@example(chunks=[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"])
@example(chunks=[b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n\x00\x00"])
@example(chunks=[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"])
def test_garbage_is_an_answer_or_our_error(chunks: list[bytes]) -> None:
    """Never another exception."""
    try:
        response = fed(*chunks)
    except AnswerError:
        return
    assert response is None or 100 < response.status < 1000


@pytest.mark.parametrize(
    ("first", "again"),
    [(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 30), (b"", b"HTTP/1.1 100 Continue\r\n\r\n")],
)
def test_a_head_without_end_ends(first: bytes, again: bytes) -> None:
    """64 KiB of headers, or of interim answers, are enough."""
    reader = Reader(KEEP)
    reader.feed(first)
    answers = 0
    with pytest.raises(AnswerError):  # noqa: PT012  # it is the last of many
        while answers < LONGEST_HEAD:
            assert reader.feed(again) is None
            answers += 1
    assert answers <= LONGEST_HEAD // len(again)


def test_a_long_body_is_not_read_to_its_end() -> None:
    """The first bytes are kept, and the connection is not used again."""
    reader = Reader(KEEP)
    assert reader.feed(b"HTTP/1.1 500 X\r\nContent-Length: 9999999\r\n\r\n") is None
    assert reader.feed(b"x" * LONGEST_BODY) is None
    assert reader.feed(b"x") == Response(500, b"x" * KEEP, None, False, None)


def test_what_is_kept_of_a_body_does_not_depend_on_its_pieces() -> None:
    """Its first bytes, however few came at once."""
    head = b"HTTP/1.1 500 X\r\nContent-Length: 30\r\n\r\n"
    assert fed(head, b"x" * 10, b"y" * 20) == Response(500, b"x" * 10 + b"y" * 6, None, True, None)


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 X\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nrubbish", False),
    ],
)
def test_whether_a_connection_is_used_again(head: bytes, reusable: bool) -> None:
    """By version and `Connection` (RFC 9112 §9.3); and not with bytes on it that nobody asked for."""
    response = fed(head)
    assert response is not None
    assert response.reusable is reusable


def test_a_body_up_to_the_end_of_the_connection() -> None:
    """Neither a length nor chunks (RFC 9112 §6.3, rule 8)."""
    reader = Reader(KEEP)
    assert reader.feed(b"HTTP/1.1 500 X\r\n\r\nsorry") is None
    assert reader.end() == Response(500, b"sorry", None, False, None)


def test_an_answer_to_one_request_says_nothing_about_the_next() -> None:
    """Headers and body are of one answer."""
    reader = Reader(KEEP)
    first = reader.feed(
        b"HTTP/1.1 503 X\r\nRetry-After: 9\r\nKeep-Alive: timeout=5\r\nContent-Length: 1\r\n\r\n!"
    )
    reader.expect()
    second = reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert first == Response(503, b"!", "9", True, 5)
    assert second == Response(200, b"", None, True, None)


def test_headers_of_an_interim_answer_are_not_the_answer_s() -> None:
    """103 Early Hints may say anything."""
    response = fed(b"HTTP/1.1 103 X\r\nRetry-After: 5\r\n\r\nHTTP/1.1 429 X\r\nContent-Length: 0\r\n\r\n")
    assert response == Response(429, b"", None, True, None)


# Requests


def test_a_request_is_one_piece_with_its_length() -> None:
    """Beginning, headers, body."""
    beginning = request_line("POST", "/a?b=1", {"Host": "crm.example"})
    assert request(beginning, {"X-A": "1"}, b"{}") == (
        b"POST /a?b=1 HTTP/1.1\r\nHost: crm.example\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n{}"
    )


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b"])
def test_a_header_cannot_become_two(value: str) -> None:
    """Whatever made its value."""
    with pytest.raises(ValueError, match="end of a line"):
        request(b"", {"X-A": value}, b"")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h", "/"),
        ("http://h?a=b", "/?a=b"),
        ("http://h/a%20b/ü c?q=ä&r=%C3%A4#part", "/a%20b/%C3%BC%20c?q=%C3%A4&r=%C3%A4"),
    ],
)
def test_the_target_is_the_path_and_the_query(url: str, target: str) -> None:
    """What is escaped stays so, the rest becomes so."""
    assert target_of(url) == target


@pytest.mark.parametrize(
    ("url", "authority", "tunnel"),
    [
        ("https://crm.example/x", "crm.example", "crm.example:443"),
        ("https://crm.example:443/x", "crm.example", "crm.example:443"),
        ("http://CRM.example:8080", "crm.example:8080", "crm.example:8080"),
        ("http://[2001:db8::1]:8080", "[2001:db8::1]:8080", "[2001:db8::1]:8080"),
        ("https://bücher.example", "xn--bcher-kva.example", "xn--bcher-kva.example:443"),
    ],
)
def test_an_origin_as_it_is_named(url: str, authority: str, tunnel: str) -> None:
    """In `Host` and in CONNECT."""
    origin = Origin.of(url)
    assert (origin.authority, origin.tunnel) == (authority, tunnel)


def test_connect_names_the_receiver_and_shows_the_password() -> None:
    """User and password of the proxy's URL, unquoted."""
    proxy = Origin.of("http://bob:s3cr%3At@proxy.example:3128")
    head = connect_request(Origin.of("https://crm.example/secret"), "bridge/1", proxy.authorization)
    assert head == (
        b"CONNECT crm.example:443 HTTP/1.1\r\nHost: crm.example:443\r\nUser-Agent: bridge/1\r\n"
        b"Proxy-Authorization: Basic Ym9iOnMzY3I6dA==\r\n\r\n"
    )


@given(data=st.binary(max_size=200))
@example(data=b"HTTP/1.1 200 Connection established\r\n\r\n")
@example(data=b"SSH-2.0-OpenSSH\r\n\r\n")
def test_a_proxy_s_answer_is_a_status_or_our_error(data: bytes) -> None:
    """Or not yet there."""
    try:
        status = connect_status(data)
    except AnswerError:
        return
    assert status is None or 0 <= status <= 999


def test_a_proxy_s_answer_has_an_end() -> None:
    """64 KiB are enough."""
    with pytest.raises(AnswerError):
        connect_status(b"HTTP/1.1 200 OK\r\n" + b"x" * LONGEST_HEAD)
