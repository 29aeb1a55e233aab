"""`format: home-assistant`: MQTT discovery and state of what an event is about.  No I/O, no clock here.

One discovery message for each entity (`<prefix>/<component>/<object_id>/config`, retained), and one object of
state, out of which the entities' templates pick their values. As in "MQTT", "MQTT sensor" and "MQTT binary
sensor" of Home Assistant's documentation. A value that a message leaves out stays as it was there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from bridge.errors import RenderError
from bridge.event import Event, ids_of

Component: TypeAlias = Literal["sensor", "binary_sensor"]
Scalar: TypeAlias = bool | int | float | str

LONGEST_STATE = 255  # characters; Home Assistant refuses a longer state
MOST_ENTITIES = 100  # of one device: a payload with more keys is no set of measurements
ALERTS = "bridge.alert."


@dataclass(frozen=True, slots=True)
class Kind:
    """What Home Assistant should make of a value; '' leaves a key out."""

    device_class: str = ""
    unit: str = ""
    category: Literal["", "diagnostic"] = ""
    name: str = ""
    """Default: the words of the key."""
    total: bool = False
    """A meter that only counts up."""


PLAIN = Kind()

RADIO: Mapping[str, Kind] = {
    "lora_rssi": Kind("signal_strength", "dBm", "diagnostic", "RSSI"),
    "lora_snr": Kind("signal_strength", "dB", "diagnostic", "SNR"),
    "last_seen": Kind("timestamp", "", "diagnostic"),
}

CONNECTED = Kind("connectivity", "", "diagnostic")
GATEWAY_EVENTS = frozenset({"gs.gateway.connect", "gs.gateway.connection.stats", "gs.gateway.disconnect"})

NORMALIZED: Mapping[str, Kind] = {
    "action_motion_detected": Kind("motion"),
    "air_co2": Kind("carbon_dioxide", "ppm"),
    "air_lightIntensity": Kind("illuminance", "lx"),
    "air_pressure": Kind("atmospheric_pressure", "hPa"),
    "air_relativeHumidity": Kind("humidity", "%"),
    "air_temperature": Kind("temperature", "°C"),
    "battery": Kind("voltage", "V", "diagnostic", "Battery"),
    "metering_water_total": Kind("water", "L", total=True),
    "soil_depth": Kind("distance", "cm"),
    "soil_ec": Kind("", "dS/m"),
    "soil_moisture": Kind("moisture", "%"),
    "soil_pH": Kind("ph", name="Soil pH"),
    "soil_temperature": Kind("temperature", "°C"),
    "water_leak": Kind("moisture"),
    "water_temperature_avg": Kind("temperature", "°C"),
    "water_temperature_current": Kind("temperature", "°C"),
    "water_temperature_max": Kind("temperature", "°C"),
    "water_temperature_min": Kind("temperature", "°C"),
    "wind_direction": Kind("", "°"),
    "wind_speed": Kind("wind_speed", "m/s"),
}
"""TTS's normalized payload with the units its schema names (lorawan-devices, lib/payload.json)."""

DECODED: Mapping[str, Kind] = {
    "co2": Kind("carbon_dioxide", "ppm"),
    "humidity": Kind("humidity", "%"),
    "illuminance": Kind("illuminance", "lx"),
    "temperature": Kind("temperature", "°C"),
}
"""Keys of a device's own decoder that hardly ever mean anything else. Others get no unit."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One value of one device."""

    component: Component
    key: str
    """In the object of state."""
    kind: Kind
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """What Home Assistant shows as a device: an end device or a gateway."""

    id: str
    name: str
    about: Mapping[str, str]
    """manufacturer, model, serial_number …, as far as the event tells."""


@dataclass(frozen=True, slots=True)
class Report:
    """What an event says about a device: its entities, and their values by key."""

    device: Device
    entities: Sequence[Entity]
    state: Mapping[str, Scalar]
    part: str = ""
    """Level below the device's topic for what must not replace its last state."""
    is_uplink: bool = False
    """Its values come from the device itself, and are stale while it is away."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where things are: the discovery prefix, the bridge's status topic if it has one, its version."""

    prefix: str
    status_topic: str | None
    version: str


def report(event: Event) -> Report:
    """What *event* says that Home Assistant can show; raises RenderError if nothing."""
    ids = ids_of(event)
    told = event.document().get("data")
    data: dict[str, Any] = told if isinstance(told, dict) else {}
    if event.name.startswith(ALERTS):
        return _alert(event, ids, data)
    if isinstance(data.get("uplink_message"), dict) and ids["device_id"]:
        return _uplink(ids, data, event.time)
    if event.name in GATEWAY_EVENTS and ids["gateway_id"]:
        return _gateway(event, ids, data)
    raise RenderError(f"{event.name} is nothing Home Assistant shows: send uplinks, gateway events or alerts")


def discovery(
    about: Report, entity: Entity, state_topic: str, site: Site, availability: str | None = None
) -> tuple[str, bytes]:
    """Topic and payload of the discovery message that makes Home Assistant show *entity*.

    *availability* is the topic that says whether the device is there.
    """
    unique_id = f"{about.device.id}_{slug(entity.key)}"
    kind = entity.kind
    config: dict[str, Any] = {
        "name": kind.name or words(entity.key),
        "unique_id": unique_id,
        "state_topic": state_topic,
        "value_template": value_template(entity),
        "device": {"identifiers": [about.device.id], "name": about.device.name, **about.device.about},
        "origin": {"name": "bridge", "sw_version": site.version},
        "qos": 1,
    }
    optional = {
        "device_class": kind.device_class,
        "unit_of_measurement": kind.unit,
        "entity_category": kind.category,
        "state_class": ("total_increasing" if kind.total else "measurement") if entity.is_number else "",
    }
    config |= {key: value for key, value in optional.items() if value}
    topics = [topic for topic in (site.status_topic, availability) if topic]
    if topics:
        config["availability"] = [{"topic": topic} for topic in topics]
    if len(topics) > 1:
        config["availability_mode"] = "all"  # the default is "latest": whichever spoke last
    return f"{site.prefix}/{entity.component}/{unique_id}/config", msgspec.json.encode(config)


def state(report: Report) -> bytes:
    """The object of state of *report*'s device."""
    return msgspec.json.encode(report.state)


def value_template(entity: Entity) -> str:
    """Picks the entity's value out of the state; where it is not in there, makes what changes nothing."""
    key = msgspec.json.encode(entity.key).decode()
    if entity.component == "binary_sensor":
        return "{{ {true: 'ON', false: 'OFF'}.get(value_json.get(" + key + "), '') }}"
    otherwise = "''" if entity.is_number else "this.state"  # empty would be a text's new state
    return "{{ value_json.get(" + key + ", " + otherwise + ") }}"


def slug(text: str) -> str:
    """*text* as an id may be written: `[a-zA-Z0-9_-]`; a hash keeps apart what would become the same."""
    plain = re.sub("[^a-zA-Z0-9_-]", "_", text)
    if plain == text:
        return plain
    return f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def words(key: str) -> str:
    """Such as `Air relative humidity` for air_relativeHumidity."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key).replace("_", " ").replace(".", " ").strip()
    return spaced[:1].upper() + spaced[1:].lower() if spaced.upper() != spaced else spaced


def _uplink(ids: Mapping[str, str], data: Mapping[str, Any], time: str) -> Report:
    uplink: dict[str, Any] = data["uplink_message"]
    decoded = dict(_flat(uplink.get("decoded_payload")))
    normalized: dict[str, Scalar] = {}
    for each in _objects(uplink.get("normalized_payload")):
        normalized |= dict(_flat(each))
    radio = _radio(uplink) | {"last_seen": str(data.get("received_at") or time)}
    values = dict([*(decoded | normalized).items()][:MOST_ENTITIES]) | radio
    own = {key: DECODED.get(key, PLAIN) for key in decoded}
    kinds: dict[str, Kind] = {**own, **{key: NORMALIZED.get(key, PLAIN) for key in normalized}, **RADIO}
    entities = [_entity(key, value, kinds[key]) for key, value in values.items()]
    return Report(_end_device(ids, uplink), entities, values, is_uplink=True)


def _end_device(ids: Mapping[str, str], uplink: Mapping[str, Any]) -> Device:
    version = uplink.get("version_ids")
    told = version if isinstance(version, dict) else {}
    about = {
        "manufacturer": told.get("brand_id"),
        "model": told.get("model_id"),
        "hw_version": told.get("hardware_version"),
        "sw_version": told.get("firmware_version"),
        "serial_number": ids["dev_eui"],
    }
    known = {key: str(value) for key, value in about.items() if value}
    return Device(_device_id(ids["application_id"], ids["device_id"]), ids["device_id"], known)


def _gateway(event: Event, ids: Mapping[str, str], data: Mapping[str, Any]) -> Report:
    """The last `connection.stats` comes after its disconnect and says when that was (`gateway_flap.sse`)."""
    connected = event.name != "gs.gateway.disconnect" and "disconnected_at" not in data
    about = {"serial_number": ids["gateway_eui"]} if ids["gateway_eui"] else {}
    device = Device(_device_id("gateway", ids["gateway_id"]), ids["gateway_id"], about)
    values: dict[str, Scalar] = {"connected": connected}
    return Report(device, [_entity("connected", connected, CONNECTED)], values)


def _alert(event: Event, ids: Mapping[str, str], data: Mapping[str, Any]) -> Report:
    """An alert is a problem of the entity it is about, or of the bridge."""
    alert = str(data.get("alert", "alert"))
    parts = ("gateway", ids["gateway_id"]) if ids["gateway_id"] and not ids["device_id"] else _parts(ids)
    name = ids["device_id"] or ids["path"] or "bridge"
    firing = event.name == f"{ALERTS}firing"
    key = f"alert_{alert}"
    entity = _entity(key, firing, Kind("problem", "", "", words(alert.replace("-", " "))))
    return Report(Device(_device_id(*parts), name, {}), [entity], {key: firing}, f"alerts/{alert}")


def _parts(ids: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(ids["path"].split("/")) if ids["path"] else ("bridge",)


def _device_id(*parts: str) -> str:
    return "_".join(("tts", *(slug(part) for part in parts)))


def _entity(key: str, value: Scalar, kind: Kind) -> Entity:
    """The entity of *value*: a device that sends text where a number was expected gets no unit for it."""
    bare = Kind(category=kind.category, name=kind.name)
    if isinstance(value, bool):
        return Entity("binary_sensor", key, kind if not kind.unit and kind.device_class in BINARY else bare)
    if isinstance(value, str):
        return Entity("sensor", key, kind if kind.device_class == "timestamp" else bare)
    fits = kind.unit or kind.device_class == "ph"
    return Entity("sensor", key, kind if fits else bare, is_number=True)


BINARY = frozenset({"connectivity", "moisture", "motion", "problem"})
"""Device classes of binary sensors used here; moisture with a unit is one of sensors."""


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Scalar]]:
    """The values in *value* that can be a state, with the keys to them joined by `_`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}_{key}" if path else str(key))
    elif path and (isinstance(value, bool | int | float) or (isinstance(value, str) and _fits(value))):
        yield path, value


def _fits(text: str) -> bool:
    return len(text) <= LONGEST_STATE


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _radio(uplink: Mapping[str, Any]) -> dict[str, Scalar]:
    """Of the gateway that heard it best."""
    heard = [
        each for each in _objects(uplink.get("rx_metadata")) if isinstance(each.get("rssi"), int | float)
    ]
    best = max(heard, key=lambda each: float(each["rssi"]), default=None)
    if best is None:
        return {}
    found: dict[str, Scalar] = {"lora_rssi": best["rssi"]}
    if isinstance(best.get("snr"), int | float):
        found["lora_snr"] = best["snr"]
    return found
