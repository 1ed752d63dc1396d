"""Addresses to listen on. The standard library alone: what fetches, or waits for the engine, answers before it."""

import errno
import socket

ANY = "::"
"""Every address of this machine, of both families."""

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet; `port` 0 takes a free one. `ANY` takes IPv4 as well, and IPv4
    alone on a machine without IPv6.

    Raises:
        OSError: `host` is no address (`socket.gaierror`), or cannot be bound.
        OverflowError, UnicodeError: `port` or `host` is out of all bounds.
    """
    if host == ANY and socket.has_dualstack_ipv6():
        try:
            return _bound(socket.AF_INET6, ANY, port, both=True)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    host = "0.0.0.0" if host == ANY else host
    return _bound(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0], host, port)


def _bound(family: int, host: str, port: int, both: bool = False) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A pod's server takes the port of a status page a moment later, when connections to that may still linger.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if both:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
    except (OSError, OverflowError):
        made.close()
        raise
    return made
