"""What was accepted stays accepted: neither nodes nor records that come and go make another model of what serves."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from plimsoll.operator.snapshot import Node
from tests.support.miniature import GIB, Cluster, spec


def surroundings_that_change() -> dict[str, Callable[[Cluster], None]]:
    here = Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 110})
    small = Node("small", allocatable={"cpu": 1000, "memory": 600 << 20, "pods": 10})
    other = Node("other", allocatable={"cpu": 1000, "memory": 3 * GIB, "pods": 10})

    def nodes(*found: Node) -> Callable[[Cluster], None]:
        return lambda cluster: setattr(cluster, "nodes", found)

    def forgotten(cluster: Cluster) -> None:
        cluster.recorded = False

    return {
        "its node is cordoned": nodes(replace(here, usable=False, cordoned=True), replace(here, name="n2")),
        "its node is the only one, and cordoned": nodes(replace(here, usable=False, cordoned=True)),
        "a node joins that is too small": nodes(here, small),
        "a node joins that would hold less": nodes(here, other),
        "what was known of its source is deleted": forgotten,
    }


@pytest.mark.parametrize("what", surroundings_that_change())
def test_what_serves_stays_accepted_whatever_happens_around_it(what: str) -> None:
    cluster = Cluster(spec=spec(accelerator={"resource": "cpu"}, context={"maxLength": 8192}))
    cluster.settle(25)
    before, made = cluster.status, dict(cluster.sets)
    surroundings_that_change()[what](cluster)
    for choice in range(40):
        cluster.act()
        assert cluster.status["budget"] == before["budget"]
        for kind in ("Accepted", "Ready"):
            assert cluster.condition(kind)["status"] == "True"
        cluster.others_move(choice)
    assert cluster.sets.keys() == made.keys()
    assert cluster.condition("Accepted")["message"].startswith("256.6 MiB weights")
    # And it is still scaled.
    cluster.change(replicas=0)
    cluster.settle(10)
    assert cluster.status["phase"] == "Stopped"


def test_a_revision_that_is_gone_back_to_is_what_it_was() -> None:
    cluster = Cluster(spec=spec(accelerator={"resource": "cpu"}, context={"maxLength": 8192}))
    cluster.settle(25)
    first, budget = cluster.spec, cluster.status["budget"]
    cluster.change(context={"maxLength": 4096})
    cluster.settle(25)
    cluster.nodes = (Node("n1", allocatable={"cpu": 8000, "memory": 600 << 20, "pods": 110}),)
    cluster.change(**first)
    cluster.settle(25)
    assert (cluster.status["phase"], cluster.status["budget"]) == ("Ready", budget)
    assert "16.0 GiB" not in cluster.condition("Accepted")["message"]
    assert "when this revision was made" in cluster.condition("Accepted")["message"]
