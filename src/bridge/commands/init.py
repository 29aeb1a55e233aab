"""`bridge init`: asks The Things Stack what a key can see, and writes a first `bridge.yaml`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from bridge.commands.terminal import print_lines, run_async
from bridge.config import path_from
from bridge.errors import ConfigError, Mistake, SourceError, StartError
from bridge.event import Kind
from bridge.sources.api import Api, AuthInfo, HttpApi, Page
from bridge.sources.http import http_client
from bridge.sources.models import tts_url
from bridge.tls import TlsConfig

LISTED: tuple[Kind, ...] = ("application", "gateway", "organization", "client", "user")
FEW = 10  # entities that are written one by one; more of a kind become *
LEAST: Mapping[Kind, tuple[str, ...]] = {
    "application": (
        "RIGHT_APPLICATION_INFO",
        "RIGHT_APPLICATION_DEVICES_READ",
        "RIGHT_APPLICATION_TRAFFIC_READ",
    ),
    "gateway": ("RIGHT_GATEWAY_INFO", "RIGHT_GATEWAY_STATUS_READ", "RIGHT_GATEWAY_TRAFFIC_READ"),
    "user": ("RIGHT_USER_INFO", "RIGHT_USER_NOTIFICATIONS_READ"),
}
"""What a key needs for all the traffic of a kind (UPSTREAM.md §2.6)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the key is and sees; *pages* hold the first entities of a kind and how many there are."""

    key: AuthInfo
    pages: Mapping[Kind, Page] = field(default_factory=dict)

    @property
    def rights(self) -> frozenset[str]:
        return self.key.rights


def init(
    url: Annotated[str, typer.Option("--url", help="Such as https://eu1.cloud.thethings.network.")],
    api_key_file: Annotated[Path, typer.Option("--api-key-file", help="A file with the API key in it.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "-c",
            "--output",
            "--config",
            help="Where to [default: $BRIDGE_CONFIG or ./bridge.yaml]; - prints it.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a first bridge.yaml from what a key can see.

    The Things Stack is asked; the file has comments.
    """
    address, output = checked(url), path_from(output)
    key = key_in(api_key_file)
    on_screen = str(output) == "-"
    if not on_screen and output.exists() and not force:
        raise ConfigError([Mistake(str(output), 0, "", "exists; name another file with -o, or add --force")])
    seen = run_async(look, address, key)
    text = written(address, reference(api_key_file, Path.cwd() if on_screen else output.parent), seen)
    if on_screen:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise ConfigError([Mistake(str(output), 0, "", f"cannot be written: {error.strerror}")]) from None
    print_lines([f"{output} is written", *next_steps(output)])


def checked(url: str) -> str:
    try:
        return tts_url(url)
    except ValueError as error:
        raise ConfigError([Mistake("--url", 0, "", str(error))]) from None


def key_in(path: Path) -> str:
    """The API key in *path*; raises ConfigError."""
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError([Mistake("--api-key-file", 0, "", f"cannot be read: {why}")]) from None
    if not key or len(key.split()) != 1:
        raise ConfigError(
            [Mistake("--api-key-file", 0, "", "must hold one API key, NNSXS.…, and nothing else")]
        )
    return key


def reference(path: Path, folder: Path) -> str:
    """*path* as the config in *folder* names it: relative if it is beside or below, else whole."""
    whole, base = Path(os.path.abspath(path)), Path(os.path.abspath(folder))  # noqa: PTH100  # keep symlinks
    return str(whole.relative_to(base)) if whole.is_relative_to(base) else str(whole)


async def look(url: str, key: str) -> Seen:
    """Ask the server at *url*; raises StartError when it cannot be reached or refuses the key."""
    async with http_client(url, key, TlsConfig()) as client:
        return await ask(HttpApi(client))


async def ask(api: Api) -> Seen:
    """What the key of *api* is and sees; raises StartError."""
    try:
        info = await api.auth_info()
    except SourceError as error:
        raise StartError(f"{error}; {advice(error)}") from None
    if info.owner is None:
        raise StartError("the server does not say whose key it is: use an API key, not a session's token")
    if info.owner.kind not in ("user", "organization"):
        return Seen(info, {info.owner.kind: Page((info.owner,), 1)})
    pages: dict[Kind, Page] = {}
    for kind in LISTED:
        try:
            page = await api.listed(kind, limit=FEW + 1)
        except SourceError:
            continue
        if page.entities:
            pages[kind] = Page(page.entities, max(page.total, len(page.entities)))
    pages.setdefault(info.owner.kind, Page((info.owner,), 1))
    return Seen(info, pages)


def advice(error: SourceError) -> str:
    if error.kind in ("refused", "rejected"):
        return "make a new API key in the Console and put it into the file"
    return "check the URL and the way to it"


def written(url: str, key_file: str, seen: Seen) -> str:
    """The text of bridge.yaml; *key_file* as the file names it."""
    return "\n".join([*head(seen), "", *sources(url, key_file, seen), "", *rest()]) + "\n"


def head(seen: Seen) -> Iterator[str]:
    yield "# bridge.yaml, written by `bridge init`. `bridge check` says what is wrong with it, and where;"
    yield "# `bridge doctor` asks the real servers. Every key is in the README and in `bridge schema`."
    owner = seen.key.owner
    yield f"# The key is that of {owner}{', an admin' if seen.key.is_admin else ''}."
    if seen.key.is_admin or any(right.endswith(("_ALL", "_WRITE", "_DELETE")) for right in seen.rights):
        yield "# It may change things. bridge only reads: a key with read rights alone is safer."


def sources(url: str, key_file: str, seen: Seen) -> Iterator[str]:
    yield "sources:"
    yield "  tts:"
    yield "    type: tts"
    yield f'    url: "{url}"'
    yield f'    api_key: "${{file:{key_file}}}"'
    yield "    identifiers:"
    for kind, page in seen.pages.items():
        yield from identifiers(kind, page, seen)
    yield "    names: auto                # ask for what the rules need; or a list of event names"
    yield "    from: now                  # where a new identifier starts: now, oldest, or 6h back"
    yield "    # transport: grpc          # needs the extra [grpc]; http works everywhere"
    owner = seen.key.owner
    if owner is not None and owner.kind == "user" and "RIGHT_USER_NOTIFICATIONS_READ" in implied(seen.rights):
        yield "  inbox:                       # account matters: keys made, collaborators changed, requests"
        yield "    type: tts-notifications"
        yield f'    url: "{url}"'
        yield f'    api_key: "${{file:{key_file}}}"'
        yield f"    user: {owner.id}"
        yield "    mark: none                 # seen or archived: once a notification is delivered"


def identifiers(kind: Kind, page: Page, seen: Seen) -> Iterator[str]:
    """The entries for *kind*, and which rights are missing for all of its events."""
    missing = [right for right in LEAST.get(kind, ()) if right not in implied(seen.rights)]
    if missing:
        yield f"      # The key lacks {', '.join(missing)}: those events of a {kind} do not come."
    devices = kind == "application" and "RIGHT_APPLICATION_DEVICES_READ" in implied(seen.rights)
    ids = ["*"] if page.total > FEW else [each.id for each in page.entities]
    if page.total > FEW:
        yield f"      # all {page.total} {kind}s, and those still to come"
    for id in ids:
        yield f'      - {kind}: "{id}"'
        if devices:
            sign = "# " if id == "*" else ""
            yield f'        {sign}devices: "*"           # every device too: 87 more events, more streams'


def implied(rights: Iterable[str]) -> frozenset[str]:
    """*rights*, with what RIGHT_GATEWAY_ALL and the like stand for, as far as bridge needs it."""
    found = set(rights)
    for kind, least in LEAST.items():
        if f"RIGHT_{kind.upper()}_ALL" in found or "RIGHT_ALL" in found:
            found.update(least)
    return frozenset(found)


def rest() -> Iterator[str]:
    yield from """\
# Where events go: delete the {}, take the comment signs off one of these, name it in `send` of a rule.
sinks: {}
#  crm:
#    type: webhook
#    url: https://crm.example/hooks/tts
#    secret: "${env:CRM_SECRET}"          # Standard Webhooks (whsec_…)
#  broker:
#    type: mqtt
#    url: mqtts://broker.example:8883
#    username: bridge
#    password: "${env:MQTT_PASSWORD}"
#  ops:
#    type: slack
#    webhook_url: "${env:SLACK_URL}"

# What goes where: one or more files of rules, such as
#   rules:
#     - name: uplinks
#       match: {name: as.up.data.forward}
#       send: [crm]
# `bridge catalogue` lists the event names.
# rules: [rules/*.yaml]

outbox: sqlite:bridge.db                  # what is not delivered yet; keep it on a local disk
# admin: {listen: "127.0.0.1:8080"}       # health, metrics, the page""".splitlines()


def next_steps(output: Path) -> Iterator[str]:
    yield f"next: add a sink and a rule; `bridge check -c {output}`; `bridge doctor`; `bridge run`"
