"""`format: home-assistant`: discovery as Home Assistant documents it, and state its templates can read."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import decode
from bridge.errors import RenderError
from bridge.event import Event
from bridge.render.home_assistant import Report, Site, discovery, report, slug, state, words
from tests.recordings import STREAMS, documents, json_bytes

SITE = Site("homeassistant", "bridge/home/status", "1.2.3")
TOPIC = "tts/plant-a/meter-01/state"
IDS = {
    "device_id": "meter-01",
    "application_ids": {"application_id": "plant-a"},
    "dev_eui": "70B3D57ED0000002",
}

# What follows is Home Assistant's documentation, 2024.12: "MQTT" (discovery topic, origin), "MQTT sensor",
# "MQTT binary sensor" and "Sensor" (device classes and their units).
COMMON_KEYS = {
    "availability": list, "availability_mode": str, "device": dict, "enabled_by_default": bool,
    "encoding": str, "entity_category": str, "entity_picture": str, "expire_after": int, "force_update": bool,
    "icon": str, "json_attributes_template": str, "json_attributes_topic": str, "name": str, "object_id": str,
    "origin": dict, "qos": int, "state_topic": str, "unique_id": str, "value_template": str,
    "device_class": str,
}  # fmt: skip
KEYS = {
    "sensor": COMMON_KEYS
    | {"last_reset_value_template": str, "options": list, "suggested_display_precision": int}
    | {"state_class": str, "unit_of_measurement": str},
    "binary_sensor": COMMON_KEYS | {"off_delay": int, "payload_off": str, "payload_on": str},
}
DEVICE_KEYS = {
    "configuration_url", "connections", "hw_version", "identifiers", "manufacturer", "model", "model_id",
    "name", "serial_number", "suggested_area", "sw_version", "via_device",
}  # fmt: skip
UNITS: dict[str, set[str | None]] = {
    "atmospheric_pressure": {"hPa", "mbar", "Pa", "kPa", "bar"},
    "carbon_dioxide": {"ppm"},
    "distance": {"mm", "cm", "m", "km"},
    "humidity": {"%"},
    "illuminance": {"lx"},
    "moisture": {"%"},
    "ph": {None},
    "signal_strength": {"dB", "dBm"},
    "temperature": {"°C", "°F", "K"},
    "timestamp": {None},
    "voltage": {"V", "mV"},
    "water": {"L", "m³"},
    "wind_speed": {"m/s", "km/h"},
}
STATE_CLASSES = {"measurement", "total", "total_increasing"}
BINARY_CLASSES = {"connectivity", "moisture", "motion", "problem"}


def validate(topic: str, payload: bytes) -> dict[str, Any]:
    """The discovery message, if Home Assistant's documentation allows it."""
    found = re.fullmatch(r"homeassistant/(sensor|binary_sensor)/([a-zA-Z0-9_-]+)/config", topic)
    assert found, topic
    component, object_id = found.groups()
    config: dict[str, Any] = json.loads(payload)
    for key, value in config.items():
        assert isinstance(value, KEYS[component][key]), key
    assert config["state_topic"]
    assert config["unique_id"] == object_id
    assert config["device"].keys() <= DEVICE_KEYS
    assert config["device"]["identifiers"]
    assert all(isinstance(value, str) for key, value in config["device"].items() if key != "identifiers")
    assert config["origin"].keys() <= {"name", "sw_version", "support_url"}
    assert config["origin"]["name"]
    assert config.get("entity_category", "diagnostic") == "diagnostic"
    for each in config.get("availability", ()):
        assert each.keys() <= {"topic", "payload_available", "payload_not_available", "value_template"}
    kind, unit = config.get("device_class"), config.get("unit_of_measurement")
    if component == "binary_sensor":
        assert kind is None or kind in BINARY_CLASSES
    else:
        assert kind is None or unit in UNITS[kind]
        assert config.get("state_class", "measurement") in STATE_CLASSES
        assert kind != "timestamp" or "state_class" not in config
    return config


@cache
def compiled(template: str) -> jinja2.Template:
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)


def shown(about: Report, values: bytes | None = None, before: str = "unknown") -> dict[str, str]:
    """What Home Assistant's templates make of a state, by the entities' names."""
    result: dict[str, str] = {}
    for entity in about.entities:
        config = validate(*discovery(about, entity, TOPIC, SITE))
        template = compiled(config["value_template"])
        told = json.loads(values or state(about))
        result[config["name"]] = template.render(value_json=told, this={"state": before})
    return result


def uplink(**message: Any) -> Event:
    data = {"end_device_ids": IDS, "received_at": "2026-11-23T21:09:10.041Z", "uplink_message": message}
    body = {
        "name": "as.up.data.forward",
        "identifiers": [{"device_ids": IDS}],
        "data": data,
        "unique_id": "1",
    }
    return decode.event(json.dumps(body).encode())


def configs(about: Report) -> dict[str, dict[str, Any]]:
    found = [validate(*discovery(about, entity, TOPIC, SITE)) for entity in about.entities]
    return {config["unique_id"]: config for config in found}


def test_an_uplink_shows_its_measurements_and_its_radio() -> None:
    """The best gateway's strength; the time it was received."""
    heard = [{"rssi": -107, "snr": -3.2}, {"rssi": -79, "snr": 9}]
    about = report(uplink(decoded_payload={"temperature": 13.8, "level": 69}, rx_metadata=heard))
    assert shown(about) == {
        "Temperature": "13.8",
        "Level": "69",
        "RSSI": "-79",
        "SNR": "9",
        "Last seen": "2026-11-23T21:09:10.041Z",
    }


def test_a_discovery_message_is_complete() -> None:
    """Written out: names, topics, availability, device."""
    version = {"brand_id": "acme", "model_id": "m1", "firmware_version": "2.0", "hardware_version": "1"}
    about = report(uplink(decoded_payload={"temperature": 13.8}, version_ids=version))
    topic, payload = discovery(about, about.entities[0], TOPIC, SITE)
    assert topic == "homeassistant/sensor/tts_plant-a_meter-01_temperature/config"
    assert json.loads(payload) == {
        "name": "Temperature",
        "unique_id": "tts_plant-a_meter-01_temperature",
        "state_topic": TOPIC,
        "value_template": "{{ value_json.get(\"temperature\", '') }}",
        "device": {
            "identifiers": ["tts_plant-a_meter-01"],
            "name": "meter-01",
            "manufacturer": "acme",
            "model": "m1",
            "hw_version": "1",
            "sw_version": "2.0",
            "serial_number": "70B3D57ED0000002",
        },
        "origin": {"name": "bridge", "sw_version": "1.2.3"},
        "qos": 1,
        "device_class": "temperature",
        "unit_of_measurement": "°C",
        "state_class": "measurement",
        "availability": [{"topic": "bridge/home/status"}],
    }


def test_a_normalized_payload_has_units_and_wins() -> None:
    """Its schema names them; the same key of the device's own decoder has none."""
    normalized = [
        {"air": {"temperature": 21.5, "relativeHumidity": 40, "location": "indoor"}, "battery": 3.1},
        {"metering": {"water": {"total": 1200}}, "water": {"leak": False}, "soil": {"pH": 6.5}},
    ]
    about = report(uplink(decoded_payload={"battery": 99}, normalized_payload=normalized))
    assert shown(about) | {"Last seen": ""} == {
        "Battery": "3.1",
        "Air temperature": "21.5",
        "Air relative humidity": "40",
        "Air location": "indoor",
        "Metering water total": "1200",
        "Water leak": "OFF",
        "Soil pH": "6.5",
        "Last seen": "",
    }
    found = configs(about)
    assert found["tts_plant-a_meter-01_battery"]["unit_of_measurement"] == "V"
    assert found["tts_plant-a_meter-01_metering_water_total"]["state_class"] == "total_increasing"
    assert found["tts_plant-a_meter-01_water_leak"]["device_class"] == "moisture"
    assert "state_class" not in found["tts_plant-a_meter-01_air_location"]


def test_a_value_of_another_type_gets_no_unit_of_numbers() -> None:
    """Home Assistant refuses text with a unit: `leak: "yes"`, `temperature: "n/a"`."""
    about = report(uplink(decoded_payload={"temperature": "n/a", "humidity": True, "co2": None, "list": [1]}))
    found = configs(about)
    assert "device_class" not in found["tts_plant-a_meter-01_temperature"]
    assert "device_class" not in found["tts_plant-a_meter-01_humidity"]
    assert len(found) == 3


def test_what_a_message_leaves_out_stays_as_it_was() -> None:
    """Empty for numbers and switches, which is ignored; the present state for text."""
    about = report(uplink(decoded_payload={"level": 1, "mode": "eco", "door": True}))
    kept = shown(about, values=b'{"last_seen":"2026-11-23T21:09:10Z"}', before="auto")
    assert kept == {"Level": "", "Mode": "auto", "Door": "", "Last seen": "2026-11-23T21:09:10Z"}


def test_keys_that_are_no_ids_are_kept_apart() -> None:
    """`a.b` and `a_b`, quotes, other alphabets: each its own entity, and its template finds it."""
    payload = {"a.b": 1, "a_b": 2, 'it"s': 3, "größe": 4, "}} {{": 5}
    about = report(uplink(decoded_payload=payload))
    values = [
        value for name, value in zip(shown(about), shown(about).values(), strict=True) if name != "Last seen"
    ]
    assert len(configs(about)) == 6
    assert {"3", "4", "5"} <= set(values)


@pytest.mark.parametrize(
    ("name", "data", "value"),
    [
        ("gs.gateway.connect", {"connected_at": "t"}, "ON"),
        ("gs.gateway.connection.stats", {"connected_at": "t"}, "ON"),
        ("gs.gateway.connection.stats", {"connected_at": "t", "disconnected_at": "t"}, "OFF"),
        ("gs.gateway.disconnect", None, "OFF"),
    ],
)
def test_a_gateway_is_connected_or_not(name: str, data: Any, value: str) -> None:
    """The last statistics come after the disconnect, and say so."""
    ids = [{"gateway_ids": {"gateway_id": "gw-roof", "eui": "B827EBFFFE000001"}}]
    body = {"name": name, "identifiers": ids, "unique_id": "1"} | ({"data": data} if data else {})
    about = report(decode.event(json.dumps(body).encode()))
    assert shown(about) == {"Connected": value}
    assert about.device.id == "tts_gateway_gw-roof"


@pytest.mark.parametrize(("name", "value"), [("bridge.alert.firing", "ON"), ("bridge.alert.resolved", "OFF")])
def test_an_alert_is_a_problem_of_its_entity(name: str, value: str) -> None:
    """Below the device's topic: its measurements stay."""
    ids = [{"gateway_ids": {"gateway_id": "gw-roof"}}]
    body = {"name": name, "identifiers": ids, "unique_id": "1", "data": {"alert": "gateway-down"}}
    about = report(decode.event(json.dumps(body).encode()))
    assert shown(about) == {"Gateway down": value}
    assert (about.device.id, about.part) == ("tts_gateway_gw-roof", "alerts/gateway-down")


@pytest.mark.parametrize(
    "name", ["as.up.data.drop", "ns.up.join.drop", "gs.gateway.connect", "as.up.data.forward"]
)
def test_what_cannot_be_shown_is_a_dead_letter(name: str) -> None:
    """No identifiers, no measurements: told by name."""
    with pytest.raises(RenderError, match=name):
        report(decode.event(json.dumps({"name": name, "unique_id": "1"}).encode()))


def test_every_recorded_uplink_and_gateway_can_be_shown() -> None:
    """All of the recordings, by Home Assistant's own schema."""
    devices = set()
    for each in (each for stream in STREAMS for each in documents(stream)):
        if each["name"].startswith(("gs.gateway.con", "gs.gateway.dis")) or (
            each["name"] == "as.up.data.forward" and "data" in each
        ):
            about = report(decode.event(json_bytes(each)))
            assert "" not in shown(about).values()
            devices.add(about.device.name)
    assert {"meter-01", "gw-roof"} <= devices


@pytest.mark.parametrize(
    ("key", "text"),
    [("temperature", "Temperature"), ("air_relativeHumidity", "Air relative humidity"), ("CO2", "CO2")],
)
def test_a_key_becomes_words(key: str, text: str) -> None:
    """As a person would write it."""
    assert words(key) == text


@given(st.text(), st.text())
def test_an_id_is_one_home_assistant_takes_and_different_for_different_text(one: str, other: str) -> None:
    """`[a-zA-Z0-9_-]` only."""
    assert re.fullmatch("[a-zA-Z0-9_-]*", slug(one))
    assert (slug(one) == slug(other)) == (one == other)


@settings(max_examples=30)  # compiling a template takes a millisecond
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
def test_whatever_a_decoder_makes_is_valid_discovery(payload: dict[str, Any]) -> None:
    """Each entity's template is valid Jinja and finds its value."""
    shown(report(uplink(decoded_payload=payload)))
