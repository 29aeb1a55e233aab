"""The commands, one file each; `bridge.cli` puts them together."""
