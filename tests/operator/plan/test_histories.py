"""Any history of a deployment in the cluster in miniature: where it ends, with pods as replicas and with groups."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll.operator import build
from tests.support.miniature import Cluster, spec

MOVES = st.lists(
    st.sampled_from(["move", "move", "act", "a", "b", "bad", "scale0", "scale2", "refuse", "restart", "version"]),
    max_size=40,
)
STRATEGIES = st.sampled_from(["Auto", "Replace"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moves=MOVES, strategy=STRATEGIES, devices=st.integers(1, 4))
def test_any_history_ends_where_a_calm_one_would(moves: list[str], strategy: str, devices: int) -> None:
    _any_history(Cluster(spec=spec(rollout={"strategy": strategy}), devices=devices), moves, min(2, devices))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moves=MOVES, strategy=STRATEGIES, devices=st.integers(2, 7))
def test_any_history_of_groups_ends_where_a_calm_one_would(moves: list[str], strategy: str, devices: int) -> None:
    wish = {"parallelism": {"nodes": 2, "tensor": 2}, "accelerator": {"resource": "cpu", "memory": "1Gi"}}
    cluster = Cluster(spec=spec(rollout={"strategy": strategy}, **wish), devices=devices)
    _any_history(cluster, moves, min(2, devices // 2))


def _any_history(cluster: Cluster, moves: list[str], wanted: int) -> None:
    cluster.settle(20)
    for number, move in enumerate(moves):
        match move:
            case "move":
                cluster.others_move(number)
            case "act" | "restart":
                # A restart remembers nothing; neither does the planner.
                cluster.act()
            case "a":
                cluster.change(context={})
            case "b":
                cluster.change(context={"maxLength": 1024})
            case "bad":
                cluster.change(context={"maxLength": 512})
                cluster.bad = {build.revision({**cluster.spec, "kvCache": {}})}
            case "scale0" | "scale2":
                cluster.change(replicas=int(move[-1]))
            case "refuse":
                cluster.change(kvCache={"ratio": 7})
            case "version":
                cluster.version += "x"
        half = [name for name, one in cluster.groups.items() if 0 < cluster.placed(name) < one.pods]
        assert len(half) <= 1, "two groups wait for each other's devices"
    cluster.change(context={"maxLength": 2048}, kvCache={}, replicas=wanted)
    cluster.settle(150)
    assert cluster.status["phase"] == "Ready", cluster.status
    assert cluster.status["updatedReplicas"] == wanted
    assert {pod.revision for pod in cluster.pods} == {build.revision(cluster.spec)}
    writes = cluster.writes
    cluster.settle(5)
    assert cluster.writes == writes
