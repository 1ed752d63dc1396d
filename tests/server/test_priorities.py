"""The field `priority`: with the policy `priority` the engine gets it by every route; else it is named as ignored."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from plimsoll.runtime.messages import EngineRequest, TokenOutput
from tests.support.endpoint import Endpoint, serving

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    "/v1/responses": {"input": "hi", "max_output_tokens": 16},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
}


@pytest.fixture(scope="module")
def ordered(tiny_checkpoint: Path) -> Iterator[Endpoint]:
    with serving(tiny_checkpoint, scheduling_policy="priority") as endpoint:
        yield endpoint


def taken(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Priorities of the requests that the engine gets from now on."""
    found: list[float] = []
    generate = endpoint.service.engine.generate

    def noting(request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        found.append(request.params.priority)
        return generate(request)

    monkeypatch.setattr(endpoint.service.engine, "generate", noting)
    return found


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_passes_it_on(ordered: Endpoint, monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    found = taken(ordered, monkeypatch)
    for value in (-3, "2", None):
        answer = ordered.http.post(route, json={"model": "tiny", "priority": value} | ROUTES[route])
        assert answer.status_code == 200, answer.text
        assert "priority" not in answer.headers.get("x-plimsoll-ignored", "")
    assert found == [-3, 2, 0]


@pytest.mark.parametrize("route", ROUTES)
def test_in_order_of_arrival_it_has_no_effect(tiny: Endpoint, monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    found = taken(tiny, monkeypatch)
    answer = tiny.http.post(route, json={"model": "tiny", "priority": -3} | ROUTES[route])
    assert answer.status_code == 200, answer.text
    assert "priority" in answer.headers["x-plimsoll-ignored"]
    assert found == [0]


def test_what_is_no_number_is_refused(ordered: Endpoint) -> None:
    status, answer = ordered.post("/v1/chat/completions", {"priority": "high"} | ROUTES["/v1/chat/completions"])
    assert (status, answer["error"]["param"]) == (400, "priority")
    _, answer = ordered.post("/v1/chat/completions", {"priority": True} | ROUTES["/v1/chat/completions"])
    assert answer["error"]["message"].endswith("(found true).")
