"""`bridge init`: what it asks, and that `check` accepts what it writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from bridge.commands import init
from bridge.config import Config, load
from bridge.errors import ConfigError, StartError
from bridge.event import Entity
from bridge.sources.models import TtsSourceConfig
from bridge.sources.notification import NotificationsSourceConfig
from bridge.standin import ALL, Key, Rights, World, serve

pytestmark = pytest.mark.anyio

TOKEN = "NNSXS.KEY.SECRET"
JANE = Entity("user", "jane")
PLANT_A = Entity("application", "plant-a")
ROOF = Entity("gateway", "gw-roof")


async def made(folder: Path, key: Rights, entities: Iterable[Entity] = ()) -> tuple[Config, str]:
    """The config `init` writes for *key*, loaded as `check` does."""
    (folder / "key").write_text(TOKEN + "\n")
    async with serve(World({TOKEN: key}, entities=entities)) as server:
        seen = await init.look(server.url, TOKEN)
        text = init.written(server.url, init.reference(folder / "key", folder), seen)
    (folder / "bridge.yaml").write_text(text)
    return load(folder / "bridge.yaml", {}), text


def followed(config: Config) -> list[tuple[str, str | None]]:
    source = config.sources["tts"]
    assert isinstance(source, TtsSourceConfig)
    return [(each.kind, getattr(each, each.kind)) for each in source.identifiers]


async def test_a_users_key_gives_what_the_user_sees_and_the_inbox(tmp_path: Path) -> None:
    config, text = await made(tmp_path, Key.of(JANE, on={PLANT_A: (), ROOF: ()}))
    assert followed(config) == [("application", "plant-a"), ("gateway", "gw-roof"), ("user", "jane")]
    inbox = config.sources["inbox"]
    assert isinstance(inbox, NotificationsSourceConfig)
    assert inbox.user == "jane"
    source = config.sources["tts"]
    assert isinstance(source, TtsSourceConfig)
    assert source.api_key.get_secret_value() == TOKEN
    assert TOKEN not in text


async def test_an_applications_key_gives_that_application(tmp_path: Path) -> None:
    """Its lists are empty; itself stands in auth_info. What its rights do not show is said."""
    config, text = await made(tmp_path, Key.of(PLANT_A, "RIGHT_APPLICATION_INFO"))
    assert followed(config) == [("application", "plant-a")]
    assert "inbox" not in config.sources
    assert "lacks RIGHT_APPLICATION_DEVICES_READ, RIGHT_APPLICATION_TRAFFIC_READ" in text


async def test_many_of_a_kind_become_a_star(tmp_path: Path) -> None:
    gateways = [Entity("gateway", f"gw-{number:02}") for number in range(40)]
    config, text = await made(tmp_path, ALL, [*gateways, PLANT_A])
    assert ("gateway", "*") in followed(config)
    assert ("application", "plant-a") in followed(config)
    assert "all 40 gateways" in text
    assert "It may change things" in text


async def test_ids_that_yaml_would_read_otherwise_stay_what_they_are(tmp_path: Path) -> None:
    odd = [Entity("application", each) for each in ("0123", "off", "1e3", "null")]
    config, _ = await made(tmp_path, ALL, odd)
    assert [id for kind, id in followed(config) if kind == "application"] == ["0123", "1e3", "null", "off"]


async def test_a_refused_key_and_no_server_end_it_with_what_to_do() -> None:
    async with serve(World({TOKEN: ALL})) as server:
        with pytest.raises(StartError, match="make a new API key"):
            await init.look(server.url, "NNSXS.OTHER.SECRET")
        with pytest.raises(StartError, match="make a new API key"):
            await init.look(server.url, "hello")
        url = server.url
    with pytest.raises(StartError, match="check the URL"):
        await init.look(url, TOKEN)


def test_the_key_file_holds_one_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        init.key_in(tmp_path / "none")
    (tmp_path / "key").write_text("\n\n")
    with pytest.raises(ConfigError, match="one API key"):
        init.key_in(tmp_path / "key")
    (tmp_path / "key").write_text("one two")
    with pytest.raises(ConfigError, match="one API key") as caught:
        init.key_in(tmp_path / "key")
    assert "two" not in str(caught.value)


def test_the_key_file_is_named_from_where_the_config_is(tmp_path: Path) -> None:
    assert init.reference(tmp_path / "secrets" / "key", tmp_path) == "secrets/key"
    assert init.reference(tmp_path / "key", tmp_path / "etc") == str(tmp_path / "key")
