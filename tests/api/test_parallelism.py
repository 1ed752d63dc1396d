"""How a replica is spread over pods: what the manifest may say, and what each pod holds."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.api.budget import Load, budget
from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import PlimsollError
from plimsoll.api.load import load_of, sharing
from plimsoll.api.manifest import parse_spec
from tests.support.built import FACTS, MINIMAL


def spec(**parallelism: Any) -> Any:
    return parse_spec({**MINIMAL, "parallelism": parallelism})


@pytest.mark.parametrize(
    ("parallelism", "said"),
    [
        ({"tensor": 3, "nodes": 2}, "spec.parallelism.tensor: must be a multiple of nodes.*is 2. Write auto or 2 or 4"),
        ({"tensor": 1, "nodes": 4}, "Write auto or 4"),
        ({"tensor": 63, "nodes": 40}, "Write auto or 40 "),
        ({"nodes": 0}, "spec.parallelism.nodes.*1"),
        ({"nodes": 65}, "spec.parallelism.nodes.*64"),
        ({"topologyKey": "rack"}, "spec.parallelism.topologyKey: goes with nodes: 2 or more. Remove it"),
        ({"exclusiveTopology": True}, "spec.parallelism.exclusiveTopology: goes with nodes: 2 or more"),
        ({"nodes": 2, "exclusiveTopology": True}, "exclusiveTopology: keeps groups apart by topologyKey"),
        ({"nodes": 2, "topologyKey": "no label"}, "spec.parallelism.topologyKey.*is no label's name"),
    ],
)
def test_what_cannot_be_is_refused_with_field_value_and_fix(parallelism: dict[str, Any], said: str) -> None:
    with pytest.raises(PlimsollError, match=said):
        spec(**parallelism)


def test_a_pod_holds_the_lines_of_its_own_ranks() -> None:
    device = DeviceFacts("cpu", 1 << 30)
    found = budget(FACTS, device, Load(tensor=4, nodes=2, max_length=64))
    assert (found.tensor, found.nodes, found.pod_ranks, found.pod_bytes) == (4, 2, 2, 2 << 30)


def test_auto_takes_a_multiple_of_the_nodes() -> None:
    device = DeviceFacts("cpu", 1 << 30)
    load = load_of(spec(nodes=2, tensor="auto"), FACTS)
    assert budget(FACTS, device, load).tensor == 2
    assert sharing(load).tensor == 2
    three = replace(load, nodes=3)
    assert budget(FACTS, device, three).tensor == 3
