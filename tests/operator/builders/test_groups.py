"""What a group of pods is made of."""

import json
from typing import Any

from plimsoll.api.budget import SERVER_BYTES, Load, budget
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.device import DeviceFacts
from plimsoll.api.group import GROUP_KEY, GROUP_LEADER, GROUP_PORT, KEY_FILE, POD, POD_IP
from plimsoll.operator import build, names
from plimsoll.operator.snapshot import ReplicaSet, Shape
from tests.support.built import FACTS, INSPECTION, MINIMAL, SETTINGS, Object, deployment

TWO = {**MINIMAL, "parallelism": {"tensor": 4, "nodes": 2}}
NAME = "llama-0123456789-g0"
PAIR = Shape(2)


def record(spec: dict[str, Any] = TWO) -> Object:
    parsed = ModelDeploymentSpec.model_validate(spec)
    line = parsed.accelerator.memory or 1 << 30
    found = budget(FACTS, DeviceFacts("cpu", line), Load(max_length=64, tensor=4, nodes=2))
    return build.replica_set(
        deployment(spec), parsed, INSPECTION, found, SETTINGS, revision="0123456789", number=1, replicas=3,
        image_volumes=True, version="1",
    )  # fmt: skip


def group(shape: Shape = PAIR, within: tuple[str, ...] = (), spec: dict[str, Any] = TWO) -> Object:
    template = record(spec)["spec"]["template"]
    return build.stateful_set(deployment(spec), "0123456789", template, shape, NAME, within=within)


def test_the_record_of_a_revision_keeps_no_pods_and_says_how_many_groups_there_are() -> None:
    found = record()
    assert found["spec"]["replicas"] == 0
    assert found["metadata"]["annotations"][names.GROUPS] == "3"
    assert names.INDEX not in found["spec"]["template"]["metadata"]["labels"], "a follower must not look like a leader"


def test_a_pod_of_a_group_knows_itself_its_leader_and_where_the_key_is() -> None:
    found = group()
    server = found["spec"]["template"]["spec"]["containers"][0]
    env = {one["name"]: one.get("value") or one["valueFrom"]["fieldRef"]["fieldPath"] for one in server["env"]}
    assert (env[POD], env[POD_IP], env[GROUP_KEY]) == ("metadata.name", "status.podIP", KEY_FILE)
    assert env[GROUP_LEADER] == f"{NAME}-0.llama-group.team.svc:{GROUP_PORT}"
    manifest = json.loads(env["PLIMSOLL_DEPLOYMENT"])
    assert manifest["spec"]["parallelism"] == {"tensor": 4, "nodes": 2}
    assert {"name": "group", "containerPort": GROUP_PORT, "protocol": "TCP"} in server["ports"]
    mount = next(one for one in server["volumeMounts"] if one["mountPath"] == KEY_FILE.rpartition("/")[0])
    volume = next(one for one in found["spec"]["template"]["spec"]["volumes"] if one["name"] == mount["name"])
    assert mount["readOnly"]
    assert volume["secret"]["secretName"] == "llama-0123456789"
    # Two of four ranks and the endpoint.
    assert server["resources"]["limits"]["memory"] == f"{(2 * (1 << 30) + SERVER_BYTES) >> 20}Mi"


def test_a_group_starts_in_parallel_and_its_pods_are_its_own() -> None:
    spec = group()["spec"]
    assert (spec["replicas"], spec["podManagementPolicy"], spec["serviceName"]) == (2, "Parallel", "llama-group")
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert spec["selector"]["matchLabels"][names.OF_GROUP] == NAME
    service = build.group_service(deployment(TWO))["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"]
    assert service["selector"].items() <= spec["template"]["metadata"]["labels"].items()


def test_a_group_stays_within_one_value_of_its_label_beside_what_the_user_wishes() -> None:
    theirs = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}}}  # fmt: skip
    wish = {**TWO, "pod": {"affinity": theirs}}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    found = group(Shape(2, "rack", apart=True), ("r2", "r1"), wish)["spec"]["template"]["spec"]["affinity"]
    [together], [apart] = found["podAffinity"][required], found["podAntiAffinity"][required]
    assert together["topologyKey"] == apart["topologyKey"] == "rack"
    assert together["labelSelector"]["matchExpressions"] == [
        {"key": names.OF_GROUP, "operator": "In", "values": [NAME]}
    ]
    assert {"key": names.OF_GROUP, "operator": "NotIn", "values": [NAME]} in apart["labelSelector"]["matchExpressions"]
    [term] = found["nodeAffinity"][required]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "disk", "operator": "Exists"}, {"key": "rack", "operator": "In", "values": ["r1", "r2"]},
    ]  # fmt: skip
    assert "podAntiAffinity" not in group(Shape(2, "rack"))["spec"]["template"]["spec"]["affinity"]
    assert "affinity" not in group()["spec"]["template"]["spec"]


def test_no_stranger_reaches_the_ports_between_pods_of_a_group() -> None:
    own = build.group_policy(deployment(TWO), NAME)["spec"]
    peers = [{"podSelector": {"matchLabels": own["podSelector"]["matchLabels"]}}]
    assert own["podSelector"]["matchLabels"][names.OF_GROUP] == NAME
    assert own["ingress"] == [{"from": peers}]
    assert {"to": peers} in own["egress"]
    wide = build.network_policy(deployment(TWO), ModelDeploymentSpec.model_validate(TWO), SETTINGS)["spec"]["ingress"]
    opened = {port["port"] for rule in wide for port in rule["ports"]}
    assert opened == {names.HTTP_PORT, names.STATUS_PORT}


def test_the_key_is_its_revision_s_and_is_not_in_the_object_that_is_planned() -> None:
    found = build.group_key(deployment(TWO), ReplicaSet("llama-0123456789", "uid", "0123456789", 1))
    assert not {"data", "stringData"} & set(found)
    [owner] = found["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("ReplicaSet", "llama-0123456789", "uid")
    assert found["metadata"]["name"] == "llama-0123456789"


def test_the_disruption_budget_lets_one_pod_of_two_groups_go_and_none_of_one() -> None:
    def allowed(healthy: int, **more: bool) -> int:
        spec = build.disruption_budget(deployment(TWO), 1, 2, **more)["spec"]
        return max(0, healthy - spec["minAvailable"])

    assert (allowed(2, hold=True), allowed(4, hold=True)) == (0, 1)
    assert allowed(2, let_go=True) == 1
    assert build.disruption_budget(deployment(TWO), 2, 2)["spec"]["maxUnavailable"] == 1
