"""Which addresses a webhook may reach (DESIGN.md §2.6).  Judged on the address really connected to.

No I/O in this file.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

NEVER: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), why)
    for network, why in (
        ("169.254.0.0/16", "link-local"),
        ("fe80::/10", "link-local"),
        ("fd00:ec2::/32", "cloud metadata"),
        ("fd20:ce::/32", "cloud metadata"),
        ("100.100.100.200/32", "cloud metadata"),
        ("192.0.0.192/32", "cloud metadata"),
        ("168.63.129.16/32", "cloud metadata"),
        ("0.0.0.0/8", "unspecified"),
        ("::/128", "unspecified"),
        ("224.0.0.0/4", "multicast"),
        ("ff00::/8", "multicast"),
        ("255.255.255.255/32", "broadcast"),
    )
)
"""Shut whatever is allowed."""

PRIVATE: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), why)
    for network, why in (
        ("127.0.0.0/8", "loopback"),
        ("::1/128", "loopback"),
        ("10.0.0.0/8", "private"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("fc00::/7", "private"),
        ("fec0::/10", "private"),
        ("100.64.0.0/10", "shared by a carrier's customers"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("240.0.0.0/4", "reserved"),
        ("64:ff9b:1::/48", "a network's own NAT64"),
        ("100::/64", "discarded"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "reserved"),
    )
)
"""Opened by `allow_private_networks`, or one by one by `allow_networks`. RFC 6890 and its registries."""

TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("::ffff:0:0:0/96"))
"""The IPv4 address is in the last 32 bits: NAT64 (RFC 6052 §2.1), SIIT (RFC 2765)."""

LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215


@dataclass(frozen=True, slots=True)
class Policy:
    """What a sink's config opens."""

    allow_private: bool = False
    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    """Names, in lower case, whose addresses are allowed whatever they are (but for NEVER)."""


def policy(allow_private: bool, allowed: Sequence[str]) -> Policy:
    """From `allow_private_networks` and `allow_networks`: CIDRs or host names; raises ValueError."""
    networks: list[Network] = []
    hosts: set[str] = set()
    for each in allowed:
        try:
            networks.append(ipaddress.ip_network(each, strict=False))
        except ValueError:
            if "/" in each or not each:
                raise ValueError("write networks as 10.1.0.0/16, or a host name") from None
            hosts.add(each.lower().rstrip("."))
    return Policy(allow_private, tuple(networks), frozenset(hosts))


def blocked(address: str, policy: Policy, host: str = "") -> str | None:
    """Why *address*, which *host* stands for, may not be reached; None if it may."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "not an IP address"
    meant = [ip, *embedded(ip)]
    for each in meant:
        why = _in(each, NEVER)
        if why:
            return why
    if host.lower().rstrip(".") in policy.hosts or any(ip in network for network in policy.networks):
        return None
    return next((why for each in meant if (why := _private(each, policy))), None)


def openable(why: str) -> bool:
    """Can the config open what `blocked` refused for the reason *why*?"""
    return all(why != shut for _, shut in NEVER)


def _private(ip: Address, policy: Policy) -> str | None:
    if policy.allow_private or any(ip in network for network in policy.networks):
        return None
    return _in(ip, PRIVATE) or (None if embedded(ip) or ip.is_global else "not public")


def _in(ip: Address, networks: Sequence[tuple[Network, str]]) -> str | None:
    return next((why for network, why in networks if ip in network), None)


def embedded(ip: Address) -> list[IPv4Address]:
    """The IPv4 addresses that reaching *ip* would reach: mapped, compatible, NAT64, 6to4, Teredo.

    Such an address is as good as what it stands for; of those of a network's own NAT64 nobody outside
    knows where the IPv4 address is, so every place counts.
    """
    if isinstance(ip, IPv4Address):
        return []
    if ip.ipv4_mapped is not None:
        return [ip.ipv4_mapped]
    if ip.sixtofour is not None:
        return [ip.sixtofour]
    if ip.teredo is not None:
        return list(ip.teredo)
    if ip in LOCAL_NAT64:
        return _local_nat64(int(ip))
    number = int(ip)
    if any(ip in network for network in TRANSLATED) or (number >> 32 == 0 and number > 1):
        return [IPv4Address(number & 0xFFFFFFFF)]
    return []


def _local_nat64(number: int) -> list[IPv4Address]:
    """Where an IPv4 address is after a prefix of 48, 56, 64 or 96 bits; bits 64 to 71 stay 0 (RFC 6052)."""
    without_u = (number >> 64) << 56 | number & ((1 << 56) - 1)  # 120 bits
    found = [without_u >> (120 - length - 32) & 0xFFFFFFFF for length in (48, 56, 64)]
    return [IPv4Address(each) for each in (*found, number & 0xFFFFFFFF) if each >> 24]
