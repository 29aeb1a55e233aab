"""Protobuf bytes to the JSON that The Things Stack writes over HTTP, and back.

By a table of the 142 messages an event can carry (`share/tts_wire_fields.json`, v3.32.1) and not by generated
classes: Python's own `MessageToJson` gives camelCase, base64 EUIs and enum names and fails on a type it does
not know, and a pool of descriptors clashes with other packages that bring `validate.proto` or `google/api`.
So there is no .proto file either: The Things Stack publishes its own, and the table is what this code reads.

No I/O beyond reading that table once, no clock, no logging.
"""

from bridge.proto.reader import Reader, Rendering
from bridge.proto.writer import encode

__all__ = ["Reader", "Rendering", "encode"]
