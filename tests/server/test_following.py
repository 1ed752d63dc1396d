"""A pod that follows: what its status port says while it waits, is whole, and leaves. No rank is started."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.curve import read_secret
from plimsoll.runtime.engine.group.hub import Hub
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.server.following import Following
from plimsoll.runtime.server.status_port import StatusPort
from tests.support.endpoint import eventually
from tests.support.pods import places, write_key


@pytest.fixture
def seats(tmp_path: Path) -> list[Membership]:
    return places(2, write_key(tmp_path))


@pytest.fixture
def port(seats: list[Membership]) -> Iterator[StatusPort]:
    page = StatusPort(0.0)
    page.following = Following(
        EngineConfig(model="/nowhere"), seats[1], read_secret(seats[1].key_file, "key"), "digest", drain_timeout=20
    )
    yield page
    page.following.agent.close()


def get(page: StatusPort, path: str) -> tuple[int, bytes]:
    status, _, body = asyncio.run(page._answer("GET", path, b""))
    return status, body


def test_a_follower_is_live_while_it_waits_and_ready_with_its_group(port: StatusPort, seats: list[Membership]) -> None:
    eventually(lambda: b"is not there" in get(port, "/ready")[1])
    assert get(port, "/live")[0] == 200
    page = json.loads(get(port, "/status")[1])
    assert (page["phase"], page["ordinal"], page["ranks"], page["observed"]) == ("loading", 1, [], {})
    assert "is not there" in page["waitsFor"]
    hub = Hub(seats[0], read_secret(seats[0].key_file, "key"), "one", "digest")
    eventually(lambda: not hub.missing())
    assert get(port, "/ready")[0] == 503
    hub.serving = True
    eventually(lambda: get(port, "/ready")[0] == 200)
    assert json.loads(get(port, "/status")[1])["phase"] == "ready"
    hub.close()
    eventually(lambda: get(port, "/ready")[0] == 503)
    assert get(port, "/live")[0] == 200


def test_draining_a_follower_waits_until_the_leader_lets_it_go(port: StatusPort, seats: list[Membership]) -> None:
    hub = Hub(seats[0], read_secret(seats[0].key_file, "key"), "one", "digest")
    hub.serving = True
    eventually(lambda: get(port, "/ready")[0] == 200)

    async def drain() -> tuple[int, bytes]:
        asked = asyncio.create_task(port._answer("GET", "/drain", b""))
        while not hub.leaving:
            await asyncio.sleep(0.01)
        assert port.unready == "draining"
        assert not asked.done()
        await asyncio.to_thread(hub.close)
        status, _, body = await asked
        return status, body

    status, body = asyncio.run(drain())
    assert status == 200
    assert json.loads(body)["drained"] is True
    assert port.phase == "draining"
