"""A pod that follows: what its status port says while it waits, is whole, and leaves. No rank is started."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.api.deployment import API_VERSION, KIND
from plimsoll.api.errors import CheckpointError
from plimsoll.api.group import GROUP_KEY, GROUP_LEADER, POD, POD_IP
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.curve import read_secret
from plimsoll.runtime.engine.group.hub import Hub
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.server.following import Following
from plimsoll.runtime.server.pod import MANIFEST, make_work
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


def test_a_pod_that_follows_opens_no_draft(
    tiny_checkpoint: Path, seats: list[Membership], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {
        "model": {"source": f"file://{tiny_checkpoint}"}, "accelerator": {"resource": "cpu", "memory": "1Gi"},
        "parallelism": {"tensor": 2, "nodes": 2},
        "serving": {"speculativeTokens": 4, "draft": {"source": "file:///draft/that/is/not/here"}},
    }  # fmt: skip
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "tiny"}, "spec": spec}
    seat = seats[1]
    given = {POD_IP: seat.address, GROUP_LEADER: f"{seat.host}:{seat.port}", GROUP_KEY: seat.key_file}
    for name, value in (given | {MANIFEST: json.dumps(manifest), POD: seat.name}).items():
        monkeypatch.setenv(name, value)
    service, following = make_work("127.0.0.1", 0)
    assert service is None
    assert following is not None
    following.agent.close()
    monkeypatch.setenv(POD, seats[0].name)
    with pytest.raises(CheckpointError, match="/draft/that/is/not/here"):
        make_work("127.0.0.1", 0)
