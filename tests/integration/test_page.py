"""The page (DESIGN.md §2.7) in Chromium, before a real bridge with hostile events in it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from bridge.decode import event as decoded
from bridge.delivery import Dead, Failure, Rejected, Route, Settlement
from bridge.outbox import Batch, Intake
from bridge.outbox.sqlite import open_outbox, threads
from bridge.receiver import Received, Reply, receive
from tests.integration.page import SCHEMES, SIZES, VIEWS, Scheme, chromium, screenshot, watched
from tests.integration.process import Bridge, running, until
from tests.recordings import RECORDED

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(90)]

TOKEN = "correct-horse"
ATTACK = "<img src=x onerror=\"window.pwned='img'\"><script>window.pwned='script'</script>"
QUOTE = "\"><svg onload=window.pwned='svg'>{{constructor.constructor('window.pwned=1')()}}"

CONFIG = """
sources:
  recorded: {{type: replay, path: {recorded}, speed: max}}
  hostile: {{type: replay, path: hostile.ndjson, speed: max, verbatim: true}}
sinks:
  crm: {{type: webhook, url: {url}/crm, allow_private_networks: true}}
  wrong: {{type: webhook, url: {url}/wrong, allow_private_networks: true}}
  shut: {{type: webhook, url: {url}/shut, allow_private_networks: true}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"{token}}}
log: {{format: json}}
"""
RULES = {
    "rules": [
        {"name": "uplinks", "match": {"name": "as.up.data.forward"}, "send": ["crm"]},
        {"name": "joins", "match": {"name": "/join/"}, "send": ["shut"]},
        {"name": ATTACK, "match": {"origin": ["evil"]}, "send": ["wrong", "crm"]},
    ],
    "alerts": [
        {
            "name": "gone",
            "kind": "state",
            "down": {"name": "gs.gateway.disconnect"},
            "up": {"name": "gs.gateway.connect"},
            "by": "gateway",
            "summary": "{{ ids.path }} " + "<img src=x onerror=window.pwned='summary'>",
            "labels": {"severity": "<b>page</b>"},
            "send": ["crm"],
        }
    ],
}


def hostile(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "name": "as.up.data.forward",
        "time": "2026-11-24T10:00:00Z",
        "identifiers": [
            {"device_ids": {"device_id": ATTACK, "application_ids": {"application_id": QUOTE}}},
        ],
        "data": {"@type": "x", "text": ATTACK, "name": QUOTE, "message_format": ATTACK},
        "origin": "evil",
        "unique_id": f"{ATTACK}{number}",
        "correlation_ids": [QUOTE],
    } | fields


HOSTILE = [
    hostile(1),
    hostile(2, name=ATTACK),
    hostile(3, data=[ATTACK], unique_id=f"'/>\"{QUOTE}"),
    hostile(
        4, name="gs.gateway.disconnect", identifiers=[{"gateway_ids": {"gateway_id": ATTACK, "eui": QUOTE}}]
    ),
]


def answer(got: Received) -> Reply | None:
    if got.path == "/wrong":
        return Reply(422, body=ATTACK.encode())
    return Reply(401, body=QUOTE.encode()) if got.path == "/shut" else None


@asynccontextmanager
async def shown(folder: Path, *, token: str = "") -> AsyncIterator[Bridge]:
    """A bridge with traffic, dead letters, a paused sink, an alert and markup in every field."""
    (folder / "rules.yaml").write_text(json.dumps(RULES))
    (folder / "hostile.ndjson").write_text("".join(json.dumps(each) + "\n" for each in HOSTILE))
    async with receive(on_delivery=answer) as receiver:
        config = CONFIG.format(
            recorded=RECORDED / "apps.sse", url=receiver.url, token=f", token: {token}" if token else ""
        )
        (folder / "bridge.yaml").write_text(config)
        async with running(folder) as bridge:
            bridge.token = token
            await until(bridge, lambda status: status["sinks"]["wrong"]["dead"] >= len(HOSTILE))
            await until(bridge, lambda status: status["sinks"]["shut"]["paused"])
            yield bridge


async def test_every_view_in_every_light_and_size(tmp_path: Path) -> None:
    """Nothing fails, nothing is asked of anybody else, nothing is wider than the screen; kept as pictures."""
    async with shown(tmp_path) as bridge, chromium() as browser:
        for scheme in SCHEMES:
            for size in SIZES:
                async with watched(browser, bridge.url, size, scheme) as seen:
                    for view in VIEWS:
                        await seen.open(f"#/{view}")
                        await expect(seen.page.locator("#health")).not_to_have_text("connecting")
                        await screenshot(seen.page, f"{view}-{scheme}-{size}")
                        wide = await seen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                        assert wide <= 0, f"{view} is {wide} px wider than {size}"
                        current = seen.page.locator("nav a[aria-current=page]")
                        await expect(current).to_have_attribute("href", f"#/{view}")
                    await seen.fine()


async def readable(page: Page) -> list[str]:
    """Texts whose contrast is below 4.5:1 (WCAG 2.2 AA), as `contrast text`."""
    found: list[str] = await page.evaluate(CONTRAST)
    return found


CONTRAST = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (color) => color.slice(0, 3).map(linear)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.offsetParent || e.closest('.skip')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const about = [ratio.toFixed(2), e.tagName, e.className, e.textContent.slice(0, 30)];
    if (ratio < 4.5) poor.push(about.join(' '));
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_every_text_can_be_read(tmp_path: Path, scheme: Scheme) -> None:
    """Contrast of at least 4.5:1, and a name for everything that can be pressed or filled in."""
    async with (
        shown(tmp_path) as bridge,
        chromium() as browser,
        watched(browser, bridge.url, "wide", scheme) as seen,
    ):
        for view in VIEWS:
            await seen.open(f"#/{view}")
            assert await readable(seen.page) == [], view
            nameless = await seen.page.evaluate(NAMELESS)
            assert nameless == [], view


NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, select, a')]
  .filter((e) => e.offsetParent && !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length)))
  .map((e) => e.outerHTML)"""  # noqa: E501


async def test_markup_in_events_is_text(tmp_path: Path) -> None:
    """Names, ids, data, rule names, summaries, labels, error texts and answers of receivers: nothing runs."""
    async with (
        shown(tmp_path) as bridge,
        chromium() as browser,
        watched(browser, bridge.url, allow="status of 4") as seen,
    ):
        page = seen.page
        await seen.open()
        await expect(page.locator(".rule .name", has_text="<img src=x").first).to_be_visible()
        await expect(page.locator("main")).to_contain_text("paused")
        await seen.open("#/dead-letters")
        await expect(page.locator("tbody tr")).to_have_count(len(HOSTILE))
        await expect(page.locator("tbody")).to_contain_text("<script>window.pwned='script'</script>")
        await page.locator("tbody a").first.click()
        await expect(page.locator("ol.steps").first).to_contain_text("attempt 1")
        await expect(page.locator("main h3").first).to_be_visible()
        for button in range(2):
            await page.locator("ul.list button").nth(button).click()
            await page.wait_for_load_state("networkidle")
        await seen.open("#/playground")
        await page.locator("ul.list button").first.click()
        await expect(page.locator(".verdict").first).to_be_visible()
        await page.locator("#event").fill(json.dumps(HOSTILE[0]))
        await page.get_by_role("button", name="Explain").click()
        await expect(page.locator("main")).to_contain_text("rules want it")
        await page.locator("#event").fill(ATTACK)
        await page.get_by_role("button", name="Explain").click()
        await seen.open("#/alerts")
        await expect(page.locator("tbody td").first).to_be_visible(timeout=30_000)
        await expect(page.locator("tbody")).to_contain_text("<b>page</b>")
        await screenshot(page, "alerts-hostile")
        for view in (*VIEWS, f"trace/{ATTACK}", "trace/%", ATTACK, "constructor"):
            await page.evaluate("hash => { location.hash = hash }", f"#/{view}")
            await page.wait_for_load_state("networkidle")
        assert await page.evaluate("window.pwned") is None
        assert await page.locator("main img, main script, main svg:not(.spark), main b").count() == 0
        await seen.fine()


async def test_the_token_is_asked_for_and_kept_in_memory(tmp_path: Path) -> None:
    """401 → dialog → wrong token → dialog → works; nothing in storage, cookies or the address."""
    async with (
        shown(tmp_path, token=TOKEN) as bridge,
        chromium() as browser,
        watched(browser, bridge.url, allow="401") as seen,
    ):
        page = seen.page
        await page.goto(bridge.url)
        await expect(page.locator("dialog#ask")).to_be_visible()
        await expect(page.locator("#token")).to_be_focused()
        await screenshot(page, "token")
        await page.keyboard.type("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("dialog#ask")).to_be_visible()
        await expect(page.locator("#token")).to_have_value("")
        await page.locator("#token").fill(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.locator("dialog#ask")).to_be_hidden()
        await expect(page.locator("h3", has_text="recorded")).to_be_visible()
        kept = await page.evaluate(
            "JSON.stringify([Object.entries(localStorage), Object.entries(sessionStorage), document.cookie, location.href])"  # noqa: E501
        )
        assert TOKEN not in kept
        assert kept.startswith('[[],[],""')
        await retried(page)
        await page.reload()
        await expect(page.locator("dialog#ask")).to_be_visible()
        await page.locator("#ask-cancel").click()
        await expect(page.locator("#health")).to_have_text("token needed")
        await seen.fine()


async def retried(page: Page) -> None:
    """A dead letter can be sent again; what happened is said aloud."""
    await page.get_by_role("link", name="Dead letters").click()
    await expect(page.locator("tbody tr")).to_have_count(len(HOSTILE))
    await page.locator("tbody button").first.click()
    await expect(page.locator("#note[role=alert]")).to_contain_text("will be tried again")
    await expect(page.locator("tbody tr")).to_have_count(len(HOSTILE) - 1)


async def test_without_a_token_a_change_says_what_is_needed(tmp_path: Path) -> None:
    """403: the button is there, and the answer names the key to set."""
    async with (
        shown(tmp_path) as bridge,
        chromium() as browser,
        watched(browser, bridge.url, allow="403") as seen,
    ):
        await seen.open("#/dead-letters")
        await seen.page.locator("tbody button").first.click()
        await expect(seen.page.locator("#note")).to_contain_text("admin.token")
        await expect(seen.page.locator("tbody tr")).to_have_count(len(HOSTILE))
        await seen.fine()


async def test_the_keyboard_reaches_everything(tmp_path: Path) -> None:
    """Skip link, views, fields and buttons by Tab and Enter alone, and the focus can always be seen."""
    async with shown(tmp_path) as bridge, chromium() as browser, watched(browser, bridge.url) as seen:
        page = seen.page
        await seen.open()
        await page.keyboard.press("Tab")
        await expect(page.locator(".skip")).to_be_focused()
        for name in ("Flow", "Alerts", "Dead letters", "Trace", "Playground"):
            await page.keyboard.press("Tab")
            await expect(page.locator("nav a", has_text=name)).to_be_focused()
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        await page.keyboard.press("Enter")
        await expect(page.locator("h1")).to_have_text("Playground")
        await expect(page.locator("main")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.locator("#event")).to_be_focused()
        await page.keyboard.type(json.dumps(HOSTILE[0]))
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.locator(".verdict").first).to_be_visible()
        await seen.open("#/dead-letters")
        await page.locator("#f-sink").focus()
        await page.keyboard.type("nobody")
        await page.keyboard.press("Enter")
        await expect(page.locator("caption")).to_have_text("Nothing was given up.")
        await seen.fine()


async def test_the_filter_and_the_trace_lead_from_a_dead_letter_to_its_story(tmp_path: Path) -> None:
    """By sink, then the event's link: which rule, which attempts, which answer."""
    async with shown(tmp_path) as bridge, chromium() as browser, watched(browser, bridge.url) as seen:
        page = seen.page
        await seen.open("#/dead-letters")
        await page.locator("#f-sink").fill("wrong")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.locator("tbody tr")).to_have_count(len(HOSTILE))
        await page.locator("tbody a").first.click()
        await expect(page.locator("main .card")).to_contain_text("status 422")
        await seen.fine()


async def test_ten_thousand_rules_and_a_hundred_thousand_dead_letters(tmp_path: Path) -> None:
    """Every view is there within a second or two, and the browser holds one page of them."""
    rules = [
        {
            "name": f"rule-{n:05}",
            "match": {"name": "as.up.data.forward", "device": f"device-{n}"},
            "send": ["crm"],
        }
        for n in range(10_000)
    ]
    (tmp_path / "rules.yaml").write_text("rules:\n" + "".join(f"  - {json.dumps(each)}\n" for each in rules))
    (tmp_path / "empty.ndjson").write_text("")
    (tmp_path / "bridge.yaml").write_text(
        'sources: {none: {type: replay, path: empty.ndjson}}\nsinks: {crm: {type: webhook, url: "http://127.0.0.1:9/"}}\n'
        'rules: [rules.yaml]\nadmin: {listen: "127.0.0.1:0"}\nlog: {format: json}\n'
    )
    await fill(tmp_path / "bridge.db", 100_000)
    async with running(tmp_path) as bridge, chromium() as browser, watched(browser, bridge.url) as seen:
        page = seen.page
        took: dict[str, float] = {}
        for view in VIEWS:
            began = time.monotonic()
            await seen.open(f"#/{view}")
            took[view] = time.monotonic() - began
        await seen.open("#/flow")
        await page.get_by_label("Filter rules").fill("rule-09999")
        await expect(page.locator(".rule")).to_have_count(1)
        await seen.open("#/dead-letters")
        await expect(page.locator("tbody tr")).to_have_count(100)
        began = time.monotonic()
        await page.get_by_role("button", name="Load more").click()
        await expect(page.locator("tbody tr")).to_have_count(200)
        took["more"] = time.monotonic() - began
        await expect(page.locator("#dead-count")).to_have_text("9999+")
        await seen.open("#/playground")
        began = time.monotonic()
        await page.locator("#event").fill(json.dumps(hostile(1)))
        await page.get_by_role("button", name="Explain").click()
        await expect(page.locator("main")).to_contain_text("of 10000 rules want it", timeout=15_000)
        took["explain"] = time.monotonic() - began
        assert max(took.values()) < 10, took
        await seen.fine()


async def fill(path: Path, count: int) -> None:
    """A store with *count* dead letters."""
    refused, now, size = Rejected(Failure("client_error", "HTTP 422", 422, ATTACK)), time.time(), 5000
    async with (
        threads() as write,
        threads() as read,
        open_outbox(
            path,
            durability="process",
            dedup_window=172_800,
            dead_letter_retention=2_592_000,
            trace_retention=86_400,
            offload_write=write,
            offload_read=read,
        ) as outbox,
    ):
        for start in range(0, count, size):
            events = [decoded(json.dumps(hostile(start + number)).encode()) for number in range(size)]
            route = (Route("rule-00001", "crm"),)
            await outbox.accept(Batch([Intake("none", event, now, True, route) for event in events]))
            due = await outbox.due("crm", now=now, horizon=3600, limit=size, taken=())
            await outbox.settle(
                [Settlement(each, now, 0.1, refused, Dead("client_error")) for each in due.deliveries]
            )
