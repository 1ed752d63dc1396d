"""Who may join a group, and what the leader and its followers do about those who may not. No rank is started."""

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

import plimsoll
from plimsoll.api.errors import SpecError
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group import hub as hub_module
from plimsoll.runtime.engine.group.agent import Agent
from plimsoll.runtime.engine.group.curve import as_follower, endpoint, read_secret
from plimsoll.runtime.engine.group.hub import Hub
from plimsoll.runtime.engine.group.membership import Membership, from_environment
from plimsoll.runtime.engine.group.words import (
    MOST_BYTES,
    Beat,
    FromLeader,
    Join,
    Joined,
    Leave,
    Put,
    Refused,
    Value,
    Want,
    decode_from_leader,
    encode,
)
from tests.support.endpoint import eventually
from tests.support.pods import places, write_key

CONFIG = EngineConfig(model="/nowhere", tensor=3, nodes=3)


@pytest.fixture
def seats(tmp_path: Path) -> list[Membership]:
    return places(3, write_key(tmp_path))


@contextlib.contextmanager
def leading(seats: list[Membership], epoch: str = "one") -> Iterator[Hub]:
    made = Hub(seats[0], read_secret(seats[0].key_file, "key"), epoch, "digest")
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def agents(seats: list[Membership], digest: str = "digest", key: Path | None = None) -> Iterator[list[Agent]]:
    secret = read_secret(str(key) if key else seats[0].key_file, "key")
    made = [Agent(CONFIG, place, secret, digest) for place in seats[1:]]
    try:
        yield made
    finally:
        for one in made:
            one.close()


class Stranger:
    """A socket with the group's key that says what it wants."""

    def __init__(self, place: Membership) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        as_follower(self.socket, read_secret(place.key_file, "key"))
        self._address: str | None = endpoint(place.host, place.port)

    def say(self, message: msgspec.Struct | bytes) -> None:
        if self._address is not None:
            # Not before there is a leader: it is not tried again.
            self.socket.connect(self._address)
            self._address = None
        self.socket.send(message if isinstance(message, bytes) else encode(message))

    def hear(self) -> FromLeader:
        """The next message that is no sign of life."""
        while True:
            assert self.socket.poll(10_000), "the leader does not answer"
            message = decode_from_leader(self.socket.recv())
            if type(message).__name__ != "Pulse":
                return message

    def close(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def stranger(seats: list[Membership]) -> Iterator[Stranger]:
    made = Stranger(seats[0])
    yield made
    made.close()


def join(place: Membership, **changes: object) -> Join:
    known = Join(ordinal=place.ordinal, name=place.name, nodes=3, version=plimsoll.__version__, digest="digest")
    return msgspec.structs.replace(known, **changes)


def test_a_leader_names_who_is_missing_until_all_have_joined(seats: list[Membership]) -> None:
    with leading(seats) as hub:
        assert hub.missing() == ["tiny-g0-1", "tiny-g0-2"]
        with agents(seats[:2]):
            eventually(lambda: hub.missing() == ["tiny-g0-2"])
            with agents([seats[0], seats[2]]) as [third]:
                eventually(lambda: not hub.missing())
                eventually(lambda: third.epoch == "one")
                assert third.failure is None


def test_an_agent_with_another_key_is_refused_and_harms_nothing(seats: list[Membership], tmp_path: Path) -> None:
    with (
        leading(seats) as hub,
        agents(seats[:2]),
        agents([seats[0], seats[2]], key=write_key(tmp_path, "other")) as [one],
    ):
        eventually(lambda: "refuses this machine's key" in (one.failure or ""))
        eventually(lambda: hub.missing() == ["tiny-g0-2"])
        assert hub.failure is None
        assert one.epoch is None


def test_a_socket_without_a_key_is_never_heard(seats: list[Membership]) -> None:
    with leading(seats) as hub, zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.setsockopt(zmq.LINGER, 0)
        plain.connect(endpoint(seats[0].host, seats[0].port))
        plain.send(encode(join(seats[1])))
        plain.send(encode(join(seats[2])))
        with agents(seats[:2]):
            eventually(lambda: hub.missing() == ["tiny-g0-2"])
        assert not plain.poll(100)
        assert hub.failure is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"digest": "another"}, "its checkpoint is another, the leader's digest"),
        ({"version": "0.0.1"}, r"its version is 0\.0\.1"),
        ({"nodes": 4}, "its nodes is 4, the leader's 3"),
        ({"ordinal": 3}, "its ordinal is 3, of 3 nodes"),
    ],
)
def test_a_machine_that_differs_is_refused_in_words(
    seats: list[Membership], stranger: Stranger, changes: dict[str, object], words: str
) -> None:
    with leading(seats) as hub:
        stranger.say(join(seats[1], **changes))
        answer = stranger.hear()
        assert isinstance(answer, Refused)
        assert re.search(words, answer.words)
        assert len(hub.missing()) == 2


def test_a_straggler_of_an_older_epoch_is_refused(seats: list[Membership], stranger: Stranger) -> None:
    with leading(seats, "two") as hub:
        for message in (
            Beat(epoch="one"),
            Leave(epoch="one"),
            Put(epoch="one", key="0/1", value=b"me"),
            Want(epoch="one", key="k"),
        ):
            stranger.say(message)
            answer = stranger.hear()
            assert isinstance(answer, Refused)
            assert answer.words == "epoch one is over, and this is two"
        assert hub.failure is None
        assert not hub._values


def test_a_leader_that_starts_again_ends_the_old_epoch_and_is_joined_again(seats: list[Membership]) -> None:
    with agents(seats) as followers:
        with leading(seats, "one"):
            eventually(lambda: [one.epoch for one in followers] == ["one", "one"])
        eventually(lambda: [one.epoch for one in followers] == [None, None])
        with leading(seats, "two") as hub:
            eventually(lambda: [one.epoch for one in followers] == ["two", "two"])
            assert not hub.missing()


def test_an_agent_that_falls_silent_is_missed_and_ends_a_group_that_has_begun(
    seats: list[Membership], stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "SILENT_SECONDS", 1.5)
    # Ranks that find nothing there would end before the silence is noticed: these wait for an answer.
    with leading(seats) as hub, agents([seats[0], seats[2]]), socket.create_server(("127.0.0.1", 0)) as mute:
        stranger.say(join(seats[1]))
        eventually(lambda: not hub.missing())
        eventually(lambda: hub.missing() == ["tiny-g0-1"])
        assert hub.failure is None
        stranger.say(join(seats[1]))
        eventually(lambda: not hub.missing())
        hub.begin(CONFIG, [0, 0, 0], f"tcp://127.0.0.1:{mute.getsockname()[1]}")
        eventually(lambda: hub.failure is not None)
        assert "tiny-g0-1 gave no sign of life" in str(hub.failure)


def test_a_pod_that_was_started_again_ends_the_group_that_counted_on_it(
    seats: list[Membership], stranger: Stranger
) -> None:
    with leading(seats[:1]) as hub:
        stranger.say(join(seats[1]))
        assert isinstance(stranger.hear(), Joined)
        hub.begin(CONFIG, [0, 0, 0], "tcp://127.0.0.1:1")
        again = Stranger(seats[0])
        again.say(join(seats[1]))
        eventually(lambda: hub.failure == "pod tiny-g0-1 was started again")
        again.close()


def test_a_machine_without_memory_for_its_ranks_says_so_before_it_starts_any(seats: list[Membership]) -> None:
    with leading(seats) as hub, agents(seats) as followers:
        eventually(lambda: not hub.missing())
        hub.begin(CONFIG, [1, 1 << 60, 1 << 60], "tcp://127.0.0.1:1")
        eventually(lambda: hub.failure is not None)
        assert re.match(r"pod tiny-g0-[12]: its ranks take 1048576\.0 TiB, and others leave ", hub.failure or "")
        assert hub.refused
        assert [one.crew for one in followers] == [None, None]


def test_ranks_leave_values_for_each_other_within_bounds(
    seats: list[Membership], stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MOST_ENTRIES", 3)
    with leading(seats) as hub:
        stranger.say(Want(epoch="one", key="late"))
        hub.put("late", b"x")
        assert stranger.hear() == Value(epoch="one", key="late", value=b"x")
        stranger.say(b"\xc1 no message at all")
        stranger.say(Put(epoch="one", key="mine", value=b"y"))
        assert hub.get("mine") == b"y"
        for number in range(3):
            stranger.say(Put(epoch="one", key=str(number), value=b"z"))
        eventually(lambda: hub.failure is not None)
        assert "more values" in str(hub.failure)


def test_a_message_that_is_too_large_costs_its_sender_the_connection(
    seats: list[Membership], stranger: Stranger
) -> None:
    with leading(seats) as hub, agents(seats[:2]):
        stranger.say(b"x" * (MOST_BYTES + 1))
        stranger.say(join(seats[2]))
        eventually(lambda: hub.missing() == ["tiny-g0-2"])
        assert not stranger.socket.poll(200)
        assert hub.failure is None


def test_a_pod_that_leaves_before_the_group_begins_is_let_go_at_once(seats: list[Membership]) -> None:
    with leading(seats) as hub, agents(seats[:2]) as [one]:
        eventually(lambda: one.epoch == "one")
        one.leave()
        assert one.released.wait(10)
        eventually(lambda: len(hub.missing()) == 2)
        assert hub.failure is None


def test_a_leader_that_serves_lets_a_pod_go_when_it_ends_the_group(seats: list[Membership]) -> None:
    with agents(seats) as followers:
        with leading(seats) as hub:
            eventually(lambda: not hub.missing())
            hub.serving = True
            eventually(lambda: all(one.serving for one in followers))
            followers[0].leave()
            eventually(lambda: hub.leaving == ["tiny-g0-1"])
            assert not followers[0].released.is_set()
        assert followers[0].released.wait(10)
        assert not followers[1].released.is_set()


@pytest.mark.parametrize("text", ["", "ab" * 31, "xy" * 32, "ab" * 4000])
def test_a_secret_that_is_none_is_refused_and_never_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"--group-key-file: must hold at least 64 hexadecimal digits") as caught:
        read_secret(str(path), "--group-key-file")
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PLIMSOLL_POD": ""}, r"PLIMSOLL_POD: is not set, and spec\.parallelism\.nodes is 2"),
        ({"PLIMSOLL_POD": "tiny-g0-2"}, "PLIMSOLL_POD: must end in a dash and a number below 2"),
        ({"PLIMSOLL_POD_IP": "0.0.0.0"}, "PLIMSOLL_POD_IP: must be the IP address of this machine alone"),
        ({"PLIMSOLL_GROUP_LEADER": "fe80::1:8002"}, "PLIMSOLL_GROUP_LEADER: must be HOST:PORT"),
        ({"PLIMSOLL_GROUP_LEADER": "host:99999"}, "PLIMSOLL_GROUP_LEADER: must be HOST:PORT"),
    ],
)
def test_a_pods_place_comes_from_the_operators_variables(change: dict[str, str], words: str) -> None:
    given = {
        "PLIMSOLL_POD": "tiny-g0-1", "PLIMSOLL_POD_IP": "10.0.0.2", "PLIMSOLL_GROUP_LEADER": "tiny-g0-0.x.y.svc:8002",
        "PLIMSOLL_GROUP_KEY": "/run/key",
    }  # fmt: skip
    found = from_environment(2, given)
    assert (found.ordinal, found.host, found.port, found.name_of(0)) == (1, "tiny-g0-0.x.y.svc", 8002, "tiny-g0-0")
    with pytest.raises(SpecError, match=words):
        from_environment(2, given | change)
