"""A group of pods that serve one replica together: a StatefulSet, and what its pods need to find and trust each other.

All is built from the pod template that the revision's ReplicaSet keeps, so that a group which is made later, after an
operator's upgrade even, is the same as the others of its revision.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from plimsoll.api.group import (
    GROUP_KEY,
    GROUP_LEADER,
    GROUP_PORT,
    GROUP_PORT_NAME,
    KEY_FILE,
    KEY_FOLDER,
    KEY_NAME,
    POD,
    POD_IP,
)
from plimsoll.operator import names
from plimsoll.operator.build.common import Object, metadata
from plimsoll.operator.build.placing import with_affinity
from plimsoll.operator.build.pod import fetcher
from plimsoll.operator.build.policy import DNS, policy
from plimsoll.operator.snapshot import Deployment, ReplicaSet, Shape

#: Of the pod's volume and of its mount.
_VOLUME = "group"


def grouped(template: Object, revision_name: str) -> Object:
    """`template` of a single pod as that of every pod of a revision's groups: what does not depend on the group.

    Args:
        revision_name: of the ReplicaSet, and of the Secret that its groups share.
    """
    found = deepcopy(template)
    # The StatefulSet controller writes the pod's own number.
    found["metadata"]["labels"].pop(names.INDEX, None)
    server, pod = found["spec"]["containers"][0], {"name": POD, "valueFrom": _field("metadata.name")}
    for one in found["spec"].get("initContainers", ()):
        # The leader runs all of a draft. An image copies itself by `cp`, which knows no leader.
        if one["name"] == fetcher("draft") and "args" in one:
            one["args"].append("--leader-only")
            one["env"].append(pod)
    server["env"] += [
        pod,
        {"name": POD_IP, "valueFrom": _field("status.podIP")},
        {"name": GROUP_KEY, "value": KEY_FILE},
    ]
    server["ports"].append({"name": GROUP_PORT_NAME, "containerPort": GROUP_PORT, "protocol": "TCP"})
    server["volumeMounts"].append({"name": _VOLUME, "mountPath": KEY_FOLDER, "readOnly": True})
    secret = {"secretName": revision_name, "items": [{"key": KEY_NAME, "path": KEY_NAME}], "defaultMode": 0o440}
    found["spec"]["volumes"].append({"name": _VOLUME, "secret": {**secret, "optional": False}})
    return found


def _field(path: str) -> Object:
    return {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}


def stateful_set(
    deployment: Deployment, revision: str, template: Mapping[str, Any], shape: Shape, name: str, *,
    within: Collection[str] = (),
) -> Object:  # fmt: skip
    """The group `name` of a revision.

    Args:
        template: of the revision's ReplicaSet.
        within: values of `shape.topology_key` whose nodes have room for the whole group; empty where that is not known.
    """
    own = {names.OF_GROUP: name}
    pods = deepcopy(dict(template))
    pods["metadata"] = {**pods["metadata"], "labels": {**pods["metadata"]["labels"], **own}}
    address = f"{name}-0.{names.group_service(deployment.name)}.{deployment.namespace}.svc:{GROUP_PORT}"
    pods["spec"]["containers"][0]["env"].append({"name": GROUP_LEADER, "value": address})
    if shape.topology_key is not None:
        pods["spec"]["affinity"] = _together(
            pods["spec"].get("affinity") or {}, deployment, shape, shape.topology_key, name, within
        )
    selector = {**names.selector(deployment.name), names.REVISION: revision, **own}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(deployment, name, labels={names.REVISION: revision, **own}),
        "spec": {
            "replicas": shape.nodes,
            "serviceName": names.group_service(deployment.name),
            "podManagementPolicy": "Parallel",
            # A revision's pods never change: the next one has StatefulSets of its own.
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": selector},
            "template": pods,
        },
    }


def _together(
    affinity: Object, deployment: Deployment, shape: Shape, key: str, name: str, within: Collection[str]
) -> Object:
    """`affinity` of the user, and all pods of a group on nodes with one value of `key`. The first pod may go anywhere:
    the scheduler lets a pod whose affinity is to itself begin."""
    required = "requiredDuringSchedulingIgnoredDuringExecution"

    def with_term(kind: str, expressions: list[Object]) -> None:
        term = {
            "topologyKey": key,
            "labelSelector": {"matchLabels": dict(names.selector(deployment.name)), "matchExpressions": expressions},
        }
        theirs = found.get(kind) or {}
        found[kind] = {**theirs, required: [*(theirs.get(required) or ()), term]}

    found = dict(affinity)
    with_term("podAffinity", [{"key": names.OF_GROUP, "operator": "In", "values": [name]}])
    if shape.apart:
        others = {"key": names.OF_GROUP, "operator": "NotIn", "values": [name]}
        with_term("podAntiAffinity", [{"key": names.OF_GROUP, "operator": "Exists"}, others])
    if within:
        term = {"matchExpressions": [{"key": key, "operator": "In", "values": sorted(within)}]}
        found = with_affinity(found, {"nodeAffinity": {required: {"nodeSelectorTerms": [term]}}})
    return found


def group_service(deployment: Deployment) -> Object:
    """Gives each pod of a group a name, before it is ready: the leader is found by it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, names.group_service(deployment.name)),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": dict(names.selector(deployment.name)),
            "ports": [{"name": GROUP_PORT_NAME, "port": GROUP_PORT, "targetPort": GROUP_PORT_NAME, "protocol": "TCP"}],
        },
    }


def group_policy(deployment: Deployment, name: str) -> Object:
    """Pods of the group `name` reach each other on every port, and the cluster's names. No other pod reaches the ports
    on which they do: the deployment's own policy opens the endpoint and the status page alone."""
    own = {**names.selector(deployment.name), names.OF_GROUP: name}
    peers = [{"podSelector": {"matchLabels": own}}]
    meta = metadata(deployment, name, labels={names.OF_GROUP: name})
    return policy(meta, own, [{"from": peers}], [DNS, {"to": peers}])


def group_key(deployment: Deployment, revision: ReplicaSet) -> Object:
    """The Secret of a revision's groups, without what is in it. It goes with the revision."""
    meta = metadata(deployment, revision.name, labels={names.REVISION: revision.revision})
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": revision.name, "uid": revision.uid}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": True,
        "metadata": {**meta, "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": False}]},
    }
