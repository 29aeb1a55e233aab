"""bridge: the event router for LoRaWAN networks on The Things Stack."""
