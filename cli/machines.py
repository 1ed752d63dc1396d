"""`plimsoll serve` on one of several machines: its place among them, and what it does where it follows."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plimsoll.api.errors import SpecError
from plimsoll.api.group import POD_IP

if TYPE_CHECKING:
    from plimsoll.checkpoint.checkpoint import Checkpoint
    from plimsoll.runtime.config import EngineConfig
    from plimsoll.runtime.engine.group.membership import Membership


#: Where vLLM's machine 0 listens unless `--master-port` says otherwise.
MASTER_PORT = 29501


@dataclass(frozen=True)
class Leader:
    """What was given of machine 0: `value`, in the option that errors name."""

    option: str
    value: str
    host: str
    port: int


def leader_of(dist_init_addr: str | None, master_addr: str | None, master_port: int | None) -> Leader | None:
    """Where machine 0 listens, by LMDeploy's and SGLang's one option or by vLLM's two; None where neither is given.

    Raises SpecError for an address that is none, and for options that do not go together.
    """
    from plimsoll.runtime.engine.group.membership import leader_address

    if dist_init_addr is not None and (master_addr is not None or master_port is not None):
        option, value = ("--master-port", master_port) if master_addr is None else ("--master-addr", master_addr)
        raise SpecError(
            "says the same as --dist-init-addr",
            field=option,
            value=value,
            fix=f"Leave one of them out, such as {option}",
        )
    if dist_init_addr is not None:
        return Leader("--dist-init-addr", dist_init_addr, *leader_address(dist_init_addr, "--dist-init-addr"))
    if master_addr is None:
        if master_port is not None:
            raise SpecError(
                "goes with --master-addr", field="--master-port", value=master_port,
                fix="Give --master-addr HOST too, or --dist-init-addr HOST:PORT",
            )  # fmt: skip
        return None
    port = MASTER_PORT if master_port is None else master_port
    if not 0 < port < 1 << 16:
        raise SpecError("must be 1 to 65535", field="--master-port", value=port)
    host = master_addr[1:-1] if master_addr.startswith("[") and master_addr.endswith("]") else master_addr
    if not host or not (_is_address(host) or re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", host)):
        raise SpecError(
            "must be the name or the address of machine 0, without a port", field="--master-addr", value=master_addr,
            fix="Write --master-addr 10.0.0.1 --master-port 8002",
        )  # fmt: skip
    return Leader("--master-addr", master_addr, host, port)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def refuse_headless_leader(rank: int) -> None:
    """Raises SpecError where the machine that leads is asked to serve nothing."""
    if rank == 0:
        raise SpecError(
            "is for machines that follow, and --node-rank is 0: machine 0 serves the endpoint", field="--headless",
            fix="Leave it out, or give --node-rank 1 or more",
        )  # fmt: skip


def membership_of(
    tensor: int | str, nodes: int, rank: int, leader: Leader | None, key_file: Path | None
) -> "Membership | None":
    """This machine's place, None where it is alone. Raises SpecError for options that do not go together."""
    if nodes == 1:
        for field, value in (
            ("--node-rank", rank or None),
            *([(leader.option, leader.value)] if leader is not None else []),
            ("--group-key-file", key_file),
        ):
            if value is not None:
                raise SpecError(
                    "is for several machines, and --nnodes is 1", field=field, value=value, fix="Give --nnodes too"
                )
        return None
    if tensor == "auto" or isinstance(tensor, str) or tensor % nodes:
        below = tensor - tensor % nodes if isinstance(tensor, int) else 0
        sizes = [str(size) for size in (below, below + nodes) if size]
        raise SpecError(
            f"must be a multiple of --nnodes, which is {nodes}", field="--tp", value=tensor,
            fix=f"Use {' or '.join(sizes)}",
        )  # fmt: skip
    if rank >= nodes:
        raise SpecError(f"must be below --nnodes, which is {nodes}", field="--node-rank", value=rank)
    if leader is None:
        raise SpecError(
            "is needed with --nnodes", field="--dist-init-addr",
            fix="Give HOST:PORT of machine 0, or --master-addr and --master-port",
        )  # fmt: skip
    if key_file is None:
        raise SpecError(
            "is needed with --nnodes: it keeps strangers out", field="--group-key-file",
            fix="Make one with: openssl rand -hex 32 > FILE, and give each machine a copy",
        )  # fmt: skip
    from plimsoll.runtime.engine.group.curve import read_secret
    from plimsoll.runtime.engine.group.membership import Membership, own_address

    read_secret(str(key_file), "--group-key-file")
    address = os.environ.get(POD_IP) or _own_address(leader, leads=rank == 0)
    return Membership(
        nodes=nodes, ordinal=rank, name=f"{socket.gethostname()}-{rank}", address=own_address(address, POD_IP),
        host=leader.host, port=leader.port, key_file=str(key_file.absolute()),
    )  # fmt: skip


def _own_address(leader: Leader, *, leads: bool) -> str:
    """The address of this machine that others reach: the one with this name, or the one on the way to it."""
    try:
        kind, _, _, _, where = socket.getaddrinfo(leader.host, leader.port, type=socket.SOCK_DGRAM)[0]
        if leads:
            return str(where[0])
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            # Sends nothing: the kernel only chooses a way.
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SpecError(f"is not found: {error.strerror or error}", field=leader.option, value=leader.value) from None


def follow(config: "EngineConfig", membership: "Membership", checkpoint: "Checkpoint", drain_timeout: float) -> None:
    """Holds this machine's ranks until it is stopped."""
    import asyncio

    from msgspec.structs import replace

    from plimsoll.checkpoint.contents import contents_of
    from plimsoll.runtime.engine.group.curve import read_secret
    from plimsoll.runtime.server.following import Following

    # What was read here is what its ranks load, whenever they are started again.
    own = replace(config, contents=contents_of(checkpoint.path))
    secret = read_secret(membership.key_file, "--group-key-file")

    async def work() -> None:
        await Following(own, membership, secret, checkpoint.digest(), drain_timeout).follow()

    asyncio.run(work())
