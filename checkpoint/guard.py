"""Connections to this machine, to the cluster itself and to a cloud's metadata are refused where a pod asks for that.

A pod that fetches what a user names must not become that user's hand inside the network. Names are judged before they
are resolved and addresses when they are connected to, so that neither a redirect nor a name that changes its address
between two look-ups gets past. It rests on Python's audit events, which every socket of the process raises.
"""

import ipaddress
import os
import socket
import sys
import threading
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.api.forbidden import forbidden_host, reached
from plimsoll.api.source import endpoint_host

#: `1` refuses; the operator sets it in pods.
SWITCH = "PLIMSOLL_FORBID_LOCAL"
#: Hosts, addresses or networks that are let through all the same, separated by commas.
ALLOWED = "PLIMSOLL_ALLOWED_HOSTS"

_installed = False
_state = threading.local()
_refused: list[str] = []


def install() -> None:
    """From now on, for the life of this process, if `PLIMSOLL_FORBID_LOCAL` is 1. A second call changes nothing."""
    global _installed
    if _installed or not active():
        return
    _installed = True
    # Xet's own transport is not Python's, and would go around this.
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    sys.addaudithook(_hook)


def active() -> bool:
    """Whether this process must refuse forbidden addresses."""
    return os.environ.get(SWITCH) == "1"


def check_url(url: str) -> None:
    """Judge a service's address as written, before anything is sent.

    Raises:
        CheckpointError: it is one of those.
        SpecError: it is not an http(s) address.
    """
    check_host(endpoint_host(url), url)


def check_host(host: str, field: str) -> None:
    """The same of a host as it is written, which a proxy may be asked for and this process never look up.

    Raises:
        CheckpointError: it is forbidden; `field` is where it was found.
    """
    if active() and (reason := _forbidden(host)):
        raise _error(reason, field)


def refusal(label: str) -> CheckpointError | None:
    """What to say if a connection of this process was refused here: the libraries between have their own words."""
    return _error(_refused[-1], label) if _refused else None


def _error(reason: str, field: str) -> CheckpointError:
    return CheckpointError(
        f"leads to a forbidden address: {reason}", field=field,
        fix="Checkpoints come from services outside the node and its control plane; name another endpoint",
    )  # fmt: skip


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    host = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if not isinstance(host, str) or getattr(_state, "busy", False):
        return
    _state.busy = True
    try:
        reason = _forbidden(host)
    finally:
        _state.busy = False
    if reason:
        _refused.append(reason)
        raise PermissionError(f"refused: {reason}")


def _forbidden(host: str) -> str | None:
    reason = forbidden_host(host)
    own = os.environ.get("KUBERNETES_SERVICE_HOST")
    if reason is None and own and (set(reached(host)) & set(reached(own)) or host.strip("[]").lower() == own.lower()):
        reason = f"{host} is the cluster's API server"
    return None if reason is None or _allowed(host) else reason


def _allowed(host: str) -> bool:
    plain = host.strip("[]").rstrip(".").lower()
    for entry in filter(None, (part.strip().lower() for part in os.environ.get(ALLOWED, "").split(","))):
        if plain == entry:
            return True
        try:
            address = ipaddress.ip_address(plain)
        except ValueError:
            continue
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            if str(address) in _addresses(entry):
                return True
    return False


def _addresses(name: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except OSError:
        return set()
