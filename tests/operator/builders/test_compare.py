"""Whether somebody changed what is ours, told apart from what the API server and others add."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.operator.build import differs, network_policy
from tests.support.built import MINIMAL, SETTINGS, Object, Spec, deployment, everything, replica_set, specs


def as_served(wanted: Any) -> Any:
    """As the API server might give it back: more fields, other spellings, lists it merges in another order."""
    if isinstance(wanted, dict):
        found = {key: as_served(value) for key, value in wanted.items()}
        for key in ("limits", "requests"):
            if key in found and found[key].get("memory") == "1Gi":
                found[key] = {**found[key], "memory": "1024Mi"}
        if "containers" in found:
            found |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
        if "image" in found and "name" in found:
            found["terminationMessagePath"] = "/dev/termination-log"
        if isinstance(found.get("env"), list):
            found["env"] = [*reversed(found["env"]), {"name": "INJECTED", "value": "by somebody"}]
        if "ownerReferences" in found:
            found |= {"resourceVersion": "7", "labels": {**found["labels"], "theirs": "yes"}}
        return {key: value for key, value in found.items() if value not in ([], None)}
    if isinstance(wanted, list):
        return [as_served(item) for item in wanted]
    return wanted


@given(specs(), st.booleans())
def test_what_was_applied_is_not_applied_again(spec: Spec, image_volumes: bool) -> None:
    for wanted in everything(spec, image_volumes=image_volumes):
        assert not differs(wanted, wanted)
        assert not differs(wanted, as_served(wanted)), wanted["kind"]


def leaves(value: Any, *path: str | int) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, *path, key)]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, *path, index)]
    return [path]


@given(specs(), st.data())
def test_every_field_of_ours_is_put_back(spec: Spec, data: st.DataObject) -> None:
    wanted = data.draw(st.sampled_from(list(everything(spec))))
    *above, last = data.draw(st.sampled_from(leaves(wanted)))
    # What is null in ours is not there anyway, and a false of this field is not either.
    absent = at(wanted, above)[last] is None or last == "publishNotReadyAddresses"
    without = [] if absent else [removed(wanted, above, last)]
    for live in (changed(wanted, above, last), *without):
        assert differs(wanted, as_served(live)), (wanted["kind"], above, last)


def changed(wanted: Object, above: list[Any], last: Any) -> Object:
    live = copy.deepcopy(wanted)
    place = at(live, above)
    old = place[last]
    place[last] = not old if isinstance(old, bool) else old + 1 if isinstance(old, int) else f"{old}1"
    return live


def removed(wanted: Object, above: list[Any], last: Any) -> Object:
    live = copy.deepcopy(wanted)
    del at(live, above)[last]
    return live


def at(place: Any, steps: list[Any]) -> Any:
    for step in steps:
        place = place[step]
    return place


@pytest.mark.parametrize(
    ("wanted", "live", "expected"),
    [
        ({"limits": {"memory": "1Gi", "cpu": "1"}}, {"limits": {"memory": "1024Mi", "cpu": 1}}, False),
        ({"limits": {"cpu": "400m"}}, {"limits": {"cpu": "0.4", "memory": "1Gi"}}, False),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "many"}}, True),
        ({"sizeLimit": "1Gi"}, {"sizeLimit": "1073741824"}, False),
        ({"annotations": {"a": "1e3"}}, {"annotations": {"a": "1000"}}, True),
        ({"port": 8001}, {"port": "8001"}, False),
        ({"replicas": 1}, {"replicas": True}, True),
        ({"egress": []}, {}, False),
        ({"egress": []}, {"egress": [{}]}, True),
        ({"from": [{"podSelector": {}}]}, {"from": [{"namespaceSelector": {}}]}, True),
        ({"emptyDir": {}}, {"emptyDir": {}, "name": "models"}, False),
        ({"emptyDir": {}}, {"hostPath": {}}, True),
        ({"args": ["a", "b"]}, {"args": ["b", "a"]}, True),
        ({"args": ["a"]}, {"args": ["a", "b"]}, True),
        ({"selector": {"a": "b"}}, {"selector": {"a": "b", "c": "d"}}, True),
        ({"value": ""}, {}, False),
        ({"optional": False}, {}, True),
        ({"publishNotReadyAddresses": False}, {}, False),
        ({"publishNotReadyAddresses": False}, {"publishNotReadyAddresses": True}, True),
        ({"publishNotReadyAddresses": True}, {}, True),
        ({"kind": "Pod"}, {}, True),
    ],
)
def test_spellings_and_meanings(wanted: Object, live: Object, expected: bool) -> None:
    assert differs(wanted, live) is expected


def test_a_port_opened_by_somebody_is_closed_again() -> None:
    wanted = network_policy(deployment(MINIMAL), ModelDeploymentSpec.model_validate(MINIMAL), SETTINGS)
    for change in (
        lambda live: live["ingress"][0]["ports"].append({"protocol": "TCP", "port": 22}),
        lambda live: live["ingress"][0]["ports"][0].update(endPort=9000),
        lambda live: live["ingress"][0]["from"].append({"namespaceSelector": {}}),
        lambda live: live["ingress"][1]["from"][0]["namespaceSelector"].clear(),
        lambda live: live.update(egress=[{}]),
    ):
        live = copy.deepcopy(wanted)
        change(live["spec"])
        assert differs(wanted, live)


def test_a_sidecar_and_a_scaler_of_others_stay() -> None:
    wanted = replica_set(MINIMAL)
    live = copy.deepcopy(wanted)
    live["spec"]["template"]["spec"]["containers"].insert(0, {"name": "mesh", "image": "mesh"})
    live["spec"]["template"]["metadata"]["annotations"]["mesh"] = "injected"
    assert not differs(wanted, live)
