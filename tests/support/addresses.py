"""What this machine can be reached by."""

import socket


def has_ipv6() -> bool:
    """Whether it has a loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as made:
            made.bind(("::1", 0))
    except OSError:
        return False
    return True
