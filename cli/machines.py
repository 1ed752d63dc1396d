"""`plimsoll serve` on one of several machines: its place among them, and what it does where it follows."""

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from plimsoll.api.errors import SpecError
from plimsoll.api.group import POD_IP

if TYPE_CHECKING:
    from plimsoll.checkpoint.checkpoint import Checkpoint
    from plimsoll.runtime.config import EngineConfig
    from plimsoll.runtime.engine.group.membership import Membership


def membership_of(
    tensor: int | str, nodes: int, rank: int, leader: str | None, key_file: Path | None
) -> "Membership | None":
    """This machine's place, None where it is alone. Raises SpecError for options that do not go together."""
    if nodes == 1:
        for field, value in (
            ("--node-rank", rank or None),
            ("--dist-init-addr", leader),
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
        raise SpecError("is needed with --nnodes", field="--dist-init-addr", fix="Give HOST:PORT of machine 0")
    if key_file is None:
        raise SpecError(
            "is needed with --nnodes: it keeps strangers out", field="--group-key-file",
            fix="Make one with: openssl rand -hex 32 > FILE, and give each machine a copy",
        )  # fmt: skip
    from plimsoll.runtime.engine.group.curve import read_secret
    from plimsoll.runtime.engine.group.membership import Membership, leader_address, own_address

    host, port = leader_address(leader, "--dist-init-addr")
    read_secret(str(key_file), "--group-key-file")
    address = os.environ.get(POD_IP) or _own_address(host, port, leads=rank == 0)
    return Membership(
        nodes=nodes, ordinal=rank, name=f"{socket.gethostname()}-{rank}", address=own_address(address, POD_IP),
        host=host, port=port, key_file=str(key_file.absolute()),
    )  # fmt: skip


def _own_address(host: str, port: int, *, leads: bool) -> str:
    """The address of this machine that others reach: the one with this name, or the one on the way to it."""
    try:
        kind, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        if leads:
            return str(where[0])
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            # Sends nothing: the kernel only chooses a way.
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SpecError(
            f"is not found: {error.strerror or error}", field="--dist-init-addr", value=f"{host}:{port}"
        ) from None


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
