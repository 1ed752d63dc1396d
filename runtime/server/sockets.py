"""Addresses to listen on. The standard library alone: what fetches, or waits for the engine, answers before it."""

import errno
import socket

ANY = "::"
"""Every address of this machine, of both families."""

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 takes a free one. `ANY` takes IPv4 as well, and IPv4 alone where there is no IPv6.

    The address is taken though connections of a server before may still linger: a pod's server takes the port of a
    status page a moment later.

    Raises:
        OSError: `host` is no address (`socket.gaierror`), or cannot be bound.
        OverflowError, UnicodeError: `port` or `host` is out of all bounds.
    """
    if host == ANY and socket.has_dualstack_ipv6():
        try:
            return socket.create_server((ANY, port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    host = "0.0.0.0" if host == ANY else host
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)
