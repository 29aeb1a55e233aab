"""Which addresses a sink may reach (DESIGN.md §2.6)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sinks.guard import NEVER, Network, Policy, blocked, embedded, openable, policy

CLOSED = Policy()
PRIVATE = Policy(allow_private=True)

SHUT = [  # whatever is allowed
    "169.254.169.254",  # metadata of AWS, Azure, Google, OpenStack
    "169.254.170.2",  # of ECS tasks
    "169.254.0.1",
    "100.100.100.200",  # of Alibaba
    "192.0.0.192",  # of Oracle
    "168.63.129.16",  # Azure's wire server
    "fd00:ec2::254",  # of AWS
    "fd20:ce::254",  # of Google
    "fe80::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "255.255.255.255",
    "::ffff:169.254.169.254",  # mapped
    "::169.254.169.254",  # compatible
    "64:ff9b::a9fe:a9fe",  # NAT64
    "64:ff9b:1::a9fe:a9fe",  # a network's own NAT64, prefix of 96 bits
    "64:ff9b:1:a9fe:a9:fe00::",  # of 48
    "64:ff9b:1:a9:fe:a9fe::",  # of 56
    "64:ff9b:1::a9:fea9:fe00:0",  # of 64
    "2002:a9fe:a9fe::1",  # 6to4
    "2001:0:a9fe:a9fe::",  # Teredo, its server
    "2001:0:808:808:0:0:5601:5601",  # Teredo, its client: 169.254.169.254, inverted
    "::ffff:0:169.254.169.254",  # SIIT
]
INSIDE = [  # unless allowed
    "127.0.0.1",
    "127.255.255.254",
    "::1",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "100.127.255.255",
    "198.18.0.1",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "192.0.0.1",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::808:808",
    "2002:7f00:1::",
    "2002:c0a8:101::1",
    "2001:0:a00:1::f7f7:f7f7",
    "::ffff:0:127.0.0.1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "198.20.0.1",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]


@pytest.mark.parametrize("address", SHUT)
def test_metadata_and_link_local_stay_shut(address: str) -> None:
    """Whatever the config opens, by CIDR, by name or by allow_private_networks."""
    everything = policy(True, ["0.0.0.0/0", "::/0", "crm.example"])
    for each in (CLOSED, PRIVATE, everything):
        why = blocked(address, each, "crm.example")
        assert why is not None
        assert not openable(why)


@pytest.mark.parametrize("address", INSIDE)
def test_what_is_not_public_is_refused(address: str) -> None:
    """In every spelling of IPv6 that reaches it."""
    why = blocked(address, CLOSED)
    assert why is not None
    assert openable(why)
    assert blocked(address, PRIVATE) is None


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_allowed(address: str) -> None:
    """The near misses: one address beside each private block."""
    assert blocked(address, CLOSED) is None


def test_a_network_is_opened_alone() -> None:
    """Its neighbours stay shut, and so does loopback."""
    opened = policy(False, ["10.1.0.0/16", "fd12::/16"])
    assert blocked("10.1.2.3", opened) is None
    assert blocked("::ffff:10.1.2.3", opened) is None
    assert blocked("fd12::1", opened) is None
    assert blocked("10.2.0.1", opened) == "private"
    assert blocked("127.0.0.1", opened) == "loopback"
    assert blocked("fd13::1", opened) == "private"


def test_a_single_address_is_a_network() -> None:
    """With or without its length, and with host bits set."""
    for text in ("10.1.2.3", "10.1.2.3/32"):
        opened = policy(False, [text])
        assert blocked("10.1.2.3", opened) is None
        assert blocked("10.1.2.4", opened) == "private"
    assert blocked("10.1.9.9", policy(False, ["10.1.2.3/16"])) is None


def test_a_host_is_opened_by_name_and_no_other() -> None:
    """The name in the URL counts, not what else points at the same address."""
    opened = policy(False, ["CRM.internal."])
    assert blocked("10.0.0.1", opened, "crm.internal") is None
    assert blocked("10.0.0.1", opened, "Crm.Internal.") is None
    assert blocked("10.0.0.1", opened, "evil.example") == "private"
    assert blocked("10.0.0.1", opened) == "private"


@pytest.mark.parametrize("wrong", ["10.0.0.0/33", "crm.example/24", "", "10.1/16"])
def test_a_network_nobody_can_mean_is_a_mistake(wrong: str) -> None:
    """Told at load."""
    with pytest.raises(ValueError, match="write networks as"):
        policy(False, [wrong])


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "::g"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """Only addresses are judged; anything else never passes."""
    assert blocked(text, PRIVATE) == "not an IP address"


addresses = st.integers(0, 2**32 - 1).map(IPv4Address)


@given(addresses)
def test_an_embedded_address_is_as_good_as_itself(ip: IPv4Address) -> None:
    """IPv4 reached through IPv6 is judged as IPv4, whichever way."""
    number = int(ip)
    plain = blocked(str(ip), CLOSED)
    ways = [
        0xFFFF << 32 | number,
        0x64FF9B << 96 | number,
        0xFFFF << 48 | number,
        0x2002 << 112 | number << 80,
    ]
    for way in ways:
        assert blocked(str(IPv6Address(way)), CLOSED) == plain


@given(st.integers(0, 2**128 - 1).map(IPv6Address) | addresses)
def test_nothing_that_is_not_global_passes(ip: IPv4Address | IPv6Address) -> None:
    """Python's own registry is a second opinion."""
    if blocked(str(ip), CLOSED) is None:
        assert not any((ip.is_loopback, ip.is_link_local, ip.is_multicast, ip.is_unspecified))
        assert not ip.is_private or embedded(ip)


@given(st.sampled_from([network for network, _ in NEVER]), st.integers(0, 2**128))
def test_every_address_of_a_shut_network_is_shut(network: Network, offset: int) -> None:
    """To its edges."""
    address = network[offset % network.num_addresses]
    assert blocked(str(address), policy(True, ["0.0.0.0/0", "::/0"]))


@given(st.text())
def test_no_text_breaks_the_guard(text: str) -> None:
    """It says why, or nothing; it raises nothing."""
    why = blocked(text, CLOSED, text)
    assert why is None or isinstance(why, str)
