"""Any history of a rollout in the small world of test_rollout: what holds at every step, and where it ends."""

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from plimsoll.operator.plan.rollout import Stage, Strategy
from tests.operator.plan.test_rollout import World, running

moves = st.lists(
    st.one_of(
        st.tuples(st.just("kubelet"), st.integers(0, 20)),
        st.tuples(st.just("deploy"), st.sampled_from("abc")),
        st.tuples(st.just("scale"), st.integers(0, 5)),
        st.tuples(st.just("devices"), st.integers(1, 7)),
        st.tuples(st.just("wait"), st.integers(1, 40)),
        st.tuples(st.just("dies"), st.integers(0, 20)),
    ),
    max_size=60,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    devices=st.integers(1, 7), wanted=st.integers(1, 5), strategy=st.sampled_from(["Auto", "Surge", "Replace"]),
    sees_nodes=st.booleans(), bad=st.sets(st.sampled_from("bc"), max_size=2), moves=moves,
)  # fmt: skip
def test_any_history_keeps_the_invariants_and_converges(
    devices: int, wanted: int, strategy: Strategy, sees_nodes: bool, bad: set[str], moves: list[tuple[str, object]]
) -> None:
    world = World(devices=devices, strategy=strategy, sees_nodes=sees_nodes, bad=bad)
    wanted = min(wanted, devices)
    running(world, "a", wanted)
    for move, value in moves:
        if move == "kubelet":
            world.kubelet(int(str(value)))
        elif move == "deploy":
            world.deploy(str(value), world.wanted)
        elif move == "scale":
            world.wanted = int(str(value))
        elif move == "devices":
            world.devices = max(int(str(value)), world.held)
        elif move == "dies":
            world.dies(int(str(value)))
        else:
            world.clock += float(str(value))
        _looks(world)
        world.controllers()
        world.schedule()
    world.wanted = min(world.wanted, world.devices - len(world.dead))
    if strategy == "Surge":
        world.devices = max(world.devices, world.held, world.wanted + 2 + len(world.dead))
    found = world.settle()
    event(f"ends {found.stage}")
    again = world.step()
    assert {name: one.replicas for name, one in world.sets.items()} == dict(again.replicas), "a settled world moves"
    if world.current in world.bad and not world.sets[world.current].proven:
        assert found.stage in (Stage.FAILED, Stage.SCALING, Stage.REPLACING, Stage.SURGING, Stage.COMPLETE)
        if found.stage is Stage.FAILED:
            assert world.serving == world.wanted
    else:
        assert found.stage is Stage.COMPLETE
        assert world.serving == world.wanted
        assert {pod.revision for pod in world.pods if pod.name not in world.dead} <= {world.current}


def _looks(world: World) -> None:
    """One step, and what must hold of it whatever came before."""
    before = {name: one.replicas for name, one in world.sets.items()}
    serving, free = world.serving, world.devices - world.held
    told_before = sum(before.values())
    found = world.step()
    told = sum(found.replicas.values())
    assert all(count >= 0 for count in found.replicas.values())
    # Never more pods than wanted beyond what a wave may add; on a count of devices, never more than there are places.
    wave = max(1, -(-world.wanted // 4))
    assert told <= max(told_before, world.wanted + wave)
    if world.strategy == "Replace":
        assert told <= max(told_before, world.wanted)
    if world.strategy == "Auto" and world.sees_nodes and told > max(told_before, world.wanted):
        assert told - max(told_before, world.wanted) <= max(0, free)
    # Never to zero while a device is free: what serves is cut only for others that serve, or for want of a place.
    if world.wanted and serving and world.strategy == "Auto" and world.sees_nodes and free > 0:
        kept = sum(
            min(found.replicas[name], sum(p.ready and not p.deleting for p in world.pods if p.owner == name))
            for name in found.replicas
        )
        assert kept > 0, (before, found)
    if world.strategy == "Surge":
        kept = sum(
            min(found.replicas[name], sum(p.ready and not p.deleting for p in world.pods if p.owner == name))
            for name in found.replicas
        )
        assert kept >= min(serving, world.wanted)
