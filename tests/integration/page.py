"""The page in a real browser: Debian's Chromium, driven by Playwright; nothing is downloaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from playwright.async_api import Browser, Page, ViewportSize, async_playwright

from tests.servers import need

ARTEFACTS = Path(__file__).parents[2] / "artefacts" / "page"
VIEWS = ("flow", "alerts", "dead-letters", "trace", "playground")
SIZES: dict[str, ViewportSize] = {
    "wide": {"width": 1280, "height": 800},
    "phone": {"width": 390, "height": 844},
}
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")

WATCH = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""  # noqa: E501


@dataclass(slots=True)
class Watched:
    """A page, and everything that should not have happened on it."""

    page: Page
    origin: str
    problems: list[str] = field(default_factory=list)

    async def open(self, path: str = "") -> None:
        """Go to a view, and wait until it has what it asked for."""
        await self.page.goto(f"{self.origin}/{path}")
        await self.page.wait_for_selector("main h1")
        await self.page.wait_for_load_state("networkidle")

    async def fine(self) -> None:
        """Fails if a script failed, a policy was violated, or anything was asked of another origin."""
        violations = await self.page.evaluate("window.violations")
        assert [*self.problems, *violations] == []


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    program = need("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def watched(
    browser: Browser, origin: str, size: str = "wide", scheme: Scheme = "light", *, allow: str = ""
) -> AsyncIterator[Watched]:
    """A fresh page, without storage of an earlier one; console errors with *allow* in them are expected."""
    context = await browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page = await context.new_page()
    found = Watched(page, origin)

    def console(kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (allow and allow in text):
            found.problems.append(f"console: {text}")

    def asked(url: str) -> None:
        if not url.startswith((origin, "data:")):
            found.problems.append(f"external request: {url}")

    page.on("console", lambda message: console(message.type, message.text))
    page.on("pageerror", lambda error: found.problems.append(f"script: {error}"))
    page.on("request", lambda request: asked(request.url))
    await page.add_init_script(WATCH)
    try:
        yield found
    finally:
        await context.close()


async def screenshot(page: Page, name: str) -> None:
    """Kept beside the results of the test run, for eyes."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=ARTEFACTS / f"{name}.png")
