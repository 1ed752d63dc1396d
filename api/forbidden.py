"""Hosts that no checkpoint may come from: this machine, the cluster itself, a cloud's metadata. No name is resolved."""

import ipaddress
import re
import unicodedata

#: Refused even if an administrator's lists allow it.
FORBIDDEN_HOSTS = (
    "169.254.0.0/16", "fe80::/10", "127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128",
    # Metadata services outside the link-local networks: AWS, Google, Oracle and Scaleway by IPv6, then Alibaba, Azure
    # and Oracle by IPv4.
    "fd00:ec2::/32", "fd20:ce::/32", "fd00:c1::/32", "fd00:42::/32",
    "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
    "localhost", "localhost.localdomain", "localhost6", "ip6-localhost", "ip6-loopback",
    "metadata", "metadata.google.internal", "metadata.azure.internal", "instance-data",
    "kubernetes", "kubernetes.default", "kubernetes.default.svc",
)  # fmt: skip
_NETWORKS = tuple(ipaddress.ip_network(entry) for entry in FORBIDDEN_HOSTS if "/" in entry)
_NAMES = tuple(entry for entry in FORBIDDEN_HOSTS if "/" not in entry)
#: Names that resolvers also find with a search domain behind them.
_ALSO_BELOW = ("kubernetes.default", "instance-data")
#: Where the IPv4 address of a metadata service ends an IPv6 address, some gateway leads to that service: every network
#: may have a NAT64 prefix of its own (RFC 6052).
_METADATA = frozenset(
    int(ipaddress.IPv4Address(address))
    for address in (
        "169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.42.42", "169.254.0.23", "100.100.100.200",
        "168.63.129.16", "192.0.0.192",
    )
)  # fmt: skip
#: IPv6 networks whose last 32 bits are the IPv4 address that is reached: IPv4-compatible, IPv4-mapped,
#: IPv4-translated (RFC 2765) and NAT64.
_ENDS_IN_IPV4 = tuple(
    ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")
)
#: NAT64 prefixes of a network's own choice (RFC 8215).
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_ISATAP = (0x00005EFE, 0x02005EFE)
#: Longer than any name that can be resolved (255), and than any spelling of an address that a resolver takes.
_LONGEST = 300

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def forbidden_host(host: str) -> str | None:
    """Why no checkpoint may come from this host (a name or a literal address, in any spelling), or None.

    Only what is written is judged; a name may still resolve to such an address, which is checked where it is resolved.
    """
    name = _plain(host)
    if len(name) > _LONGEST:
        return "a name of more than 255 characters names no host"
    for address in reached(name):
        network = next((net for net in _NETWORKS if address.version == net.version and address in net), None)
        if network:
            return f"{address} belongs to this machine or to a cloud's metadata ({network})"
    for entry in _NAMES:
        if name == entry or name.endswith(f".{entry}") or (entry in _ALSO_BELOW and name.startswith(f"{entry}.")):
            return f"{name} is a name of this machine, of the cluster itself or of a cloud's metadata"
    return None


def reached(host: str) -> tuple[Address, ...]:
    """The addresses that a connection to a literal address may reach: itself, and the IPv4 address it stands for.

    `host` may be in any spelling that resolvers take; the result is empty for a name.
    """
    name = _plain(host)
    if len(name) > _LONGEST:
        return ()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        loose = _loose_ipv4(name)
        return () if loose is None else (loose,)
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    return (address, *(ipaddress.IPv4Address(inner) for inner in dict.fromkeys(_inside(address))))


def _plain(host: str) -> str:
    """`host` as resolvers see it: without brackets, zone and last dot, with full-width characters folded."""
    folded = unicodedata.normalize("NFKC", host).replace("\u3002", ".")
    return folded.strip().strip("[]").partition("%")[0].rstrip(".").lower()


def _inside(address: ipaddress.IPv6Address) -> list[int]:
    """The IPv4 addresses that gateways of this machine or network may read out of an IPv6 address."""
    value = int(address)
    last = value & 0xFFFFFFFF
    found = []
    # `::` and `::1` are addresses of their own.
    if any(address in network for network in _ENDS_IN_IPV4) and value > 1:
        found.append(last)
    if last in _METADATA or (value >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(last)
    if address.sixtofour is not None:
        found.append(int(address.sixtofour))
    if address.teredo is not None:
        found += (int(one) for one in address.teredo)
    if address in _LOCAL_NAT64:
        # RFC 6052: bits 64 to 71 are left out of the address. Prefixes of 48, 56, 64 and 96 bits; a reading that begins
        # with a zero is of another length than the prefix has.
        readings = (
            (value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF,
            (value >> 64 & 0xFF) << 24 | value >> 32 & 0xFFFFFF,
            value >> 24 & 0xFFFFFFFF,
            last,
        )
        found += (reading for reading in readings if reading >> 24)
    return found


def _loose_ipv4(name: str) -> ipaddress.IPv4Address | None:
    """What resolvers make of `127.1`, `2130706433`, `0x7f.0.0.1` and `0177.0.0.1`."""
    parts = name.split(".")
    if not 1 <= len(parts) <= 4:
        return None
    numbers = []
    for part in parts:
        if re.fullmatch(r"0x[0-9a-f]+", part):
            numbers.append(int(part, 16))
        elif re.fullmatch(r"0[0-7]*", part):
            numbers.append(int(part, 8))
        elif re.fullmatch(r"[1-9][0-9]*", part):
            numbers.append(int(part))
        else:
            return None
    *heads, last = numbers
    if any(number > 255 for number in heads) or last >= 256 ** (5 - len(numbers)):
        return None
    value = last
    for index, number in enumerate(heads):
        value += number << (24 - 8 * index)
    return ipaddress.IPv4Address(value)
