"""Which place of a group over several machines this process has, and where it finds the others."""

import ipaddress
import os
from collections.abc import Mapping

import msgspec

from plimsoll.api.errors import SpecError
from plimsoll.api.group import GROUP_KEY, GROUP_LEADER, POD, POD_IP, ordinal_of


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's, or pod's, place."""

    nodes: int
    """Machines of the group."""
    ordinal: int
    """0 leads."""
    name: str
    """The pod's name, or what the machine is called in messages."""
    address: str
    """IP address that this machine listens on for its group, and no other."""
    host: str
    """The leader's name or address, resolved at each attempt."""
    port: int
    key_file: str
    """Path of the shared secret."""

    def name_of(self, ordinal: int) -> str:
        """The name of the machine with this ordinal."""
        stem, _, number = self.name.rpartition("-")
        return f"{stem}-{ordinal}" if number == str(self.ordinal) else f"node {ordinal}"


def from_environment(nodes: int, environment: Mapping[str, str] = os.environ) -> Membership:
    """A pod's place, as the operator's variables have it. Raises SpecError."""
    given = {}
    for name in (POD, POD_IP, GROUP_LEADER, GROUP_KEY):
        given[name] = environment.get(name, "")
        if not given[name]:
            raise SpecError(
                f"is not set, and spec.parallelism.nodes is {nodes}", field=name, fix="The operator sets it in a group"
            )
    ordinal = ordinal_of(given[POD])
    if ordinal is None or ordinal >= nodes:
        raise SpecError(f"must end in a dash and a number below {nodes}", field=POD, value=given[POD])
    host, port = leader_address(given[GROUP_LEADER], GROUP_LEADER)
    return Membership(
        nodes=nodes, ordinal=ordinal, name=given[POD], address=own_address(given[POD_IP], POD_IP), host=host,
        port=port, key_file=given[GROUP_KEY],
    )  # fmt: skip


def leader_address(value: str, field: str) -> tuple[str, int]:
    """(host, port) of `HOST:PORT`; an IPv6 address stands in brackets. Raises SpecError."""
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16) or (
        ":" in host and not bracketed
    ):
        raise SpecError("must be HOST:PORT", field=field, value=value, fix="Write 10.0.0.1:8002 or [2001:db8::1]:8002")
    return host[1:-1] if bracketed else host, int(port)


def own_address(value: str, field: str) -> str:
    """`value`, where it is the IP address of one machine. Raises SpecError."""
    try:
        if ipaddress.ip_address(value).is_unspecified:
            raise ValueError
    except ValueError:
        raise SpecError("must be the IP address of this machine alone", field=field, value=value) from None
    return value
