"""Keys and certificates of one connection's configuration."""

from __future__ import annotations

import ssl

from bridge.errors import StartError
from bridge.fields import File, Section


class TlsConfig(Section):
    ca_file: File | None = None
    """PEM file of the authorities to trust instead of the system's."""
    cert_file: File | None = None
    """PEM file of the client certificate."""
    key_file: File | None = None
    """PEM file of its key; default: in cert_file."""


def context(config: TlsConfig) -> ssl.SSLContext:
    """A client context: TLS 1.2 or newer, names verified; raises StartError for a file it cannot use."""
    made = ssl.create_default_context()
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if config.ca_file:
            made = ssl.create_default_context(cafile=config.ca_file)
            made.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.cert_file:
            made.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"tls: a certificate or key file cannot be used: {error}") from None
    return made
