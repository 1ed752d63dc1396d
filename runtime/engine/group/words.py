"""What the leader, the agents of other pods and their ranks say to each other. Every message names its epoch.

An epoch is one life of a group: each start of the leader's engine begins another. What comes from an older one is
refused.
"""

from typing import Annotated

import msgspec

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.messages import EngineFailed, LoadProgress, RankReady

Name = Annotated[str, msgspec.Meta(max_length=256)]
Words = Annotated[str, msgspec.Meta(max_length=16384)]
Rank = Annotated[int, msgspec.Meta(ge=0, lt=1 << 12)]

MOST_BYTES = 1 << 17
"""Of one message to the leader; libzmq cuts off who sends more."""
MOST_ENTRIES = 1 << 13
"""Values that ranks may leave with the leader while they meet."""


class Join(msgspec.Struct, frozen=True, kw_only=True, tag="join"):
    """An agent wants to be part of the next epoch."""

    ordinal: Annotated[int, msgspec.Meta(ge=1, lt=1 << 12)]
    name: Name
    nodes: int
    version: Name
    digest: Name
    """Of the checkpoint that it will load from."""


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag="beat"):
    """An agent lives; and what its ranks take."""

    epoch: Name
    peaks: Annotated[dict[Rank, int], msgspec.Meta(max_length=64)] = {}
    """Most resident bytes by rank."""


class Said(msgspec.Struct, frozen=True, kw_only=True, tag="said"):
    """A rank of an agent loads, or has loaded."""

    epoch: Name
    rank: Rank
    message: LoadProgress | RankReady | EngineFailed


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag="lost"):
    """A rank of an agent has ended or hangs."""

    epoch: Name
    words: Words
    refused: bool
    """It said itself what forbids a start."""


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag="leave"):
    """An agent's pod is about to stop, and waits until it may go."""

    epoch: Name


class Put(msgspec.Struct, frozen=True, kw_only=True, tag="put"):
    """A rank leaves a value for the others: where it listens."""

    epoch: Name
    key: Name
    value: Annotated[bytes, msgspec.Meta(max_length=1 << 16)]


class Want(msgspec.Struct, frozen=True, kw_only=True, tag="want"):
    """A rank asks for a value; the answer comes once there is one."""

    epoch: Name
    key: Name


ToLeader = Join | Beat | Said | Lost | Leave | Put | Want


class Joined(msgspec.Struct, frozen=True, kw_only=True, tag="joined"):
    """The agent is part of this epoch, which begins once all are there."""

    epoch: str


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin"):
    """All pods are there: start your ranks."""

    epoch: str
    config: EngineConfig
    """But for paths and threads, which are each machine's own."""
    takes: list[int]
    """Bytes of each rank of the group."""
    steps: str
    """Address at which ranks hear of steps."""


class Pulse(msgspec.Struct, frozen=True, kw_only=True, tag="pulse"):
    """The leader lives."""

    epoch: str
    serving: bool
    """All ranks have loaded, and a token was generated."""


class Value(msgspec.Struct, frozen=True, kw_only=True, tag="value"):
    """What a rank asked for."""

    epoch: str
    key: str
    value: bytes


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """This epoch is over: end your ranks, and join again."""

    epoch: str
    words: str


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The leader does not take what was said."""

    epoch: str
    """The leader's own."""
    words: str


FromLeader = Joined | Begin | Pulse | Value | Ended | Refused


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """A rank is ready to hear of steps. The one message that goes this way."""

    epoch: Name
    rank: Rank


encode = msgspec.msgpack.Encoder().encode
decode_to_leader = msgspec.msgpack.Decoder(ToLeader).decode
decode_from_leader = msgspec.msgpack.Decoder(FromLeader).decode
decode_hello = msgspec.msgpack.Decoder(Hello).decode
