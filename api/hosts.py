"""Names in Host and Origin headers, and which of them always mean this machine."""

import ipaddress
import re

#: A host and perhaps a port, as Host has it.
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_]([a-z0-9_.-]{0,252})?)(:[0-9]{1,5})?", re.IGNORECASE)
#: A page's origin whose host `_HOST` reads; `null` and the schemes of browser extensions are none.
_ORIGIN = re.compile(r"https?://([^/?#@\\\s]+)", re.IGNORECASE)


def is_host(text: str) -> bool:
    """Whether `text` is a name or an address, perhaps with a port."""
    return _HOST.fullmatch(text) is not None


def host_name(host: str) -> str:
    """Without the port and the dot that ends a full name."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower().removesuffix(".")


def host_of(origin: str) -> str | None:
    """Host and port of a page's origin; None for an origin of another scheme."""
    found = _ORIGIN.fullmatch(origin)
    return found[1] if found else None


def is_loopback(host: str) -> bool:
    """Whether `host`, perhaps with a port, always names this machine and no other.

    `localhost` and all below it, 127.0.0.0/8 and ::1. Not 0.0.0.0, by which browsers reach this machine from anywhere.
    """
    if not is_host(host):
        return False
    name = host_name(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address is not None and (mapped or address).is_loopback


def is_address(host: str) -> bool:
    """Whether `host`, perhaps with a port, is an address: no DNS server can make it point elsewhere."""
    return is_host(host) and _address(host_name(host)) is not None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None
