"""A process with the guard on: tries what it must refuse and what it must let through, and prints what became of it.

Run as `python -m tests.support.guarded`, with the environment of a pod. One JSON object, from a case to its outcome:
`let through`, or the words of the refusal.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from plimsoll.checkpoint import guard

API = "203.0.113.9"
METADATA = "169.254.169.254"
#: What names resolve to here, as a hostile DNS server would have it.
NAMES = {"rebound.example": METADATA, "api.example": API, "mapped.example": f"::ffff:{METADATA}"}

_resolve = socket.getaddrinfo


def resolved(host: Any, port: Any, *more: Any, **options: Any) -> Any:
    """`socket.getaddrinfo` of a resolver that knows `NAMES`."""
    address = NAMES.get(host)
    if address is None:
        return _resolve(host, port, *more, **options)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    rest = (0, 0) if ":" in address else ()
    return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, *rest))]


def connected(host: str) -> None:
    socket.create_connection((host, 80), timeout=0.2).close()


def sent(how: str, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        if how == "sendmsg":
            one.sendmsg([b"x"], [], 0, (host, 53))
        else:
            one.sendto(b"x", (host, 53))


def connect_ex(host: str) -> None:
    with socket.socket() as one:
        one.settimeout(0.2)
        one.connect_ex((host, 80))


def from_hub(source: str) -> None:
    from plimsoll.checkpoint.hub import HubRemote
    from plimsoll.checkpoint.sources import HubSource

    HubRemote(HubSource(source, "main", None))


def outcome(call: Callable[..., None], *given: str) -> str:
    from plimsoll.api.errors import CheckpointError

    try:
        call(*given)
    except (PermissionError, CheckpointError) as error:
        return str(error)
    except OSError:
        pass  # A network that is not there: the guard had nothing against it.
    return "let through"


def main() -> None:
    """Prints the outcomes."""
    if "alone" not in sys.argv:
        guard.install()
    socket.getaddrinfo = resolved
    hosts = (METADATA, f"::ffff:{METADATA}", "2852039166", "0xA9FEA9FE", "fd00:ec2::254", "rebound.example",
             "mapped.example", API, f"::ffff:{API}", "api.example", "203.0.113.10", "127.0.0.1")  # fmt: skip
    found = {f"connect {host}": outcome(connected, host) for host in hosts}
    literal = [host for host in hosts if host[0].isdigit() and "." in host and not host.startswith("0x")]
    for host in (*literal, f"::ffff:{METADATA}", "fd00:ec2::254"):
        found |= {f"{how} {host}": outcome(sent, how, host) for how in ("sendmsg", "sendto")}
    found |= {f"connect_ex {host}": outcome(connect_ex, host) for host in literal}
    found |= {f"hub {source}": outcome(from_hub, source) for source in os.environ.get("SOURCES", "").split() if source}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
