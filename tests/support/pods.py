"""A group over several machines on this one: each has a loopback address of its own."""

import contextlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.agent import Agent
from plimsoll.runtime.engine.group.curve import read_secret
from plimsoll.runtime.engine.group.membership import Membership


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as made:
        made.bind((address, 0))
        return int(made.getsockname()[1])


def write_key(folder: Path, name: str = "key") -> Path:
    """A new secret in a file."""
    path = folder / name
    path.write_text(secrets.token_hex(32) + "\n")
    return path


def places(nodes: int, key: Path) -> list[Membership]:
    """The places of a group whose leader listens on a free port."""
    port = free_port()
    return [
        Membership(
            nodes=nodes, ordinal=one, name=f"tiny-g0-{one}", address=f"127.0.0.{one + 1}", host="127.0.0.1", port=port,
            key_file=str(key),
        )
        for one in range(nodes)
    ]  # fmt: skip


@contextlib.contextmanager
def followers(config: EngineConfig, places: list[Membership]) -> Iterator[list[Agent]]:
    """Agents of all places but the leader's."""
    digest = open_checkpoint(Path(config.model)).digest()
    secret = read_secret(places[0].key_file, "key")
    agents = [Agent(config, place, secret, digest) for place in places[1:]]
    try:
        yield agents
    finally:
        for agent in agents:
            agent.close()
