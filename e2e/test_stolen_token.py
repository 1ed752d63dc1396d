"""The API server refuses what the token of a cluster-wide operator must not do. Nothing is stored."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import pytest
import yaml

from e2e.cluster import SOON, Cluster, Object, eventually
from e2e.test_chart import CHART, OPERATOR, RELEASE, helm

#: One release, whose roles and policies are of the whole cluster.
pytestmark = pytest.mark.alone
MARKS = {"app.kubernetes.io/managed-by": "plimsoll", "plimsoll.dev/deployment": "x"}
OWNER = {
    "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "name": "x", "controller": True,
    "uid": "00000000-0000-0000-0000-000000000001",
}  # fmt: skip
ADOPTED = {"metadata": {"labels": MARKS, "ownerReferences": [OWNER]}}
RESTRICTED = {
    "allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
UNCONFINED = {"type": "Unconfined"}
HOST = {"httpGet": {"host": "192.0.2.1", "port": 80}}
#: Laid over the container's security context.
SECURITY = {
    "privileged": {"privileged": True, "allowPrivilegeEscalation": True},
    "escalation": {"allowPrivilegeEscalation": True},
    "capability": {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}, "no-drop": {"capabilities": {}},
    "root": {"runAsUser": 0}, "not-non-root": {"runAsNonRoot": False}, "seccomp": {"seccompProfile": UNCONFINED},
    "no-seccomp": {"seccompProfile": None}, "apparmor": {"appArmorProfile": UNCONFINED},
    "selinux": {"seLinuxOptions": {"type": "spc_t"}}, "proc": {"procMount": "Unmasked"},
}  # fmt: skip
#: Laid over the container.
CONTAINER = {
    "host-port": {"ports": [{"containerPort": 1, "hostPort": 1}]}, "probe": {"livenessProbe": HOST},
    "hook": {"lifecycle": {"preStop": HOST}},
}  # fmt: skip
#: Laid over the pod's spec.
POD = {
    "host-network": {"hostNetwork": True}, "host-pid": {"hostPID": True}, "host-ipc": {"hostIPC": True},
    "token": {"automountServiceAccountToken": True}, "account": {"serviceAccountName": "another"},
    "host-path": {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]},
    "projected": {"volumes": [{"name": "h", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
    "csi": {"volumes": [{"name": "h", "csi": {"driver": "secrets.example"}}]},
    "pod-root": {"securityContext": {"runAsUser": 0}},
    "pod-seccomp": {"securityContext": {"seccompProfile": UNCONFINED}},
    "pod-apparmor": {"securityContext": {"appArmorProfile": UNCONFINED}},
    "pod-selinux": {"securityContext": {"seLinuxOptions": {"user": "system_u"}}},
    "sysctl": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    "init": {"initContainers": [{"name": "i", "image": "i", "securityContext": {"privileged": True}}]},
}  # fmt: skip
SERVICES = {
    "chooses-all": {"selector": {"a": "b"}}, "no-selector": {"selector": None}, "node-port": {"type": "NodePort"},
    "balancer": {"type": "LoadBalancer"}, "external-ips": {"externalIPs": ["192.0.2.1"]},
    "external-name": {"type": "ExternalName", "externalName": "x.example"},
}  # fmt: skip


#: Laid over the key of a group: each makes another Secret of it.
SECRETS: tuple[dict[str, Any], ...] = (
    {"name": "another"}, {"name": "x-01234567aba"}, {"labels": {**MARKS, "plimsoll.dev/revision": "abc"}},
    {"labels": {"plimsoll.dev/revision": "01234567ab"}}, {"kind": "ModelDeployment"}, {"owner": "y-01234567ab"},
    {"type": "kubernetes.io/service-account-token"}, {"type": "kubernetes.io/dockerconfigjson"},
    {"data": {"token": "YQ=="}}, {"data": {"key": "YQ==", "more": "YQ=="}},
    {"annotations": {"kubernetes.io/service-account.name": "default"}},
)  # fmt: skip


def secret(**change: Any) -> Object:
    """The key of a group, or what a stolen token would make of it."""
    name = change.get("name", "x-01234567ab")
    labels = change.get("labels", {**MARKS, "plimsoll.dev/revision": "01234567ab"})
    kind = change.get("kind", "ReplicaSet")
    group = "apps/v1" if kind == "ReplicaSet" else OWNER["apiVersion"]
    owner = {**OWNER, "apiVersion": group, "kind": kind, "name": change.get("owner", name)}
    about = {"name": name, "namespace": "default", "labels": labels, "ownerReferences": [owner]}
    if "annotations" in change:
        about["annotations"] = change["annotations"]
    found = {"apiVersion": "v1", "kind": "Secret", "metadata": about, "data": change.get("data", {"key": "YQ=="})}
    return {**found, "type": change.get("type", "Opaque")}


def template(kind: str, change: Mapping[str, Any]) -> Object:
    where = {"security": SECURITY, "container": CONTAINER, "pod": POD}
    container: Object = {"name": "a", "image": "a", "securityContext": dict(RESTRICTED)}
    spec: Object = {"automountServiceAccountToken": False, "containers": [container]}
    laid = {"security": container["securityContext"], "container": container, "pod": spec}
    assert kind in where
    laid[kind].update(deepcopy(dict(change)))
    return spec


def made(kind: str, name: str, spec: Mapping[str, Any], namespace: str) -> Object:
    """A pod, a ReplicaSet or a Job of this pod spec, with the operator's marks."""
    about: Object = {"name": f"plimsoll-{name}", "namespace": namespace, "labels": MARKS}
    if kind == "Pod":
        return {"apiVersion": "v1", "kind": kind, "metadata": about, "spec": dict(spec)}
    about["ownerReferences"] = [OWNER]
    inner = {"metadata": {"labels": MARKS}, "spec": dict(spec)}
    if kind == "Job":
        inner["spec"]["restartPolicy"] = "Never"
        return {"apiVersion": "batch/v1", "kind": kind, "metadata": about, "spec": {"template": inner}}
    selector = {"matchLabels": {"plimsoll.dev/deployment": "x"}}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": about, "spec": {"selector": selector, "template": inner}}


def owned(kind: str, group: str, name: str, spec: Mapping[str, Any], namespace: str) -> Object:
    about = {"name": name, "namespace": namespace, "labels": MARKS, "ownerReferences": [OWNER]}
    return {"apiVersion": group, "kind": kind, "metadata": about, "spec": dict(spec)}


@pytest.fixture
def account(cluster: Cluster, namespace: str) -> Iterator[str]:
    """The operator's account, its role and its policy; no operator runs."""
    version = cluster.version.removeprefix("v")
    values = {"replicas": 0, "crds": {"install": False}, "metrics": {"serviceMonitor": False}}
    command = ("template", RELEASE, str(CHART), "-n", namespace, "--kube-version", version, "--no-hooks")
    objects = helm(*command, values=values)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=objects)
    yield f"system:serviceaccount:{namespace}:{OPERATOR}"
    cluster.kubectl("delete", "-n", namespace, "--ignore-not-found", "-f", "-", stdin=objects)


def ask(account: str, *command: str, body: str = "") -> str:
    done = subprocess.run(
        ["kubectl", *command, "--dry-run=server", f"--as={account}"],
        input=body,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def created(account: str, objects: list[Object]) -> list[str]:
    said = ask(account, "create", "--validate=false", "-f", "-", body=yaml.safe_dump_all(objects))
    return [line.split(" ")[0] for line in said.splitlines() if " created" in line]


def test_a_stolen_token_makes_only_restricted_pods_and_takes_over_nothing(
    cluster: Cluster, namespace: str, account: str
) -> None:
    record = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plimsoll-source-1", "labels": MARKS}}

    def at(where: str) -> Object:
        return {**record, "metadata": {**record["metadata"], "namespace": where}}

    eventually(
        lambda: created(account, [at("default")]) and not created(account, [at("kube-system")]), SOON, "a policy"
    )
    kinds = ("Pod", "ReplicaSet", "StatefulSet", "Job")
    plain = template("pod", {})
    good = [made(kind, "good", plain, "default") for kind in kinds]
    assert created(account, good) == [
        "pod/plimsoll-good", "replicaset.apps/plimsoll-good", "statefulset.apps/plimsoll-good",
        "job.batch/plimsoll-good",
    ]  # fmt: skip

    bad = [made(kind, "system", plain, where) for where in ("kube-system", "kube-public") for kind in kinds]
    tables = (("security", SECURITY), ("container", CONTAINER), ("pod", POD))
    cases = [(name, template(where, change)) for where, table in tables for name, change in table.items()]
    bad += [made(kind, name, spec, "default") for name, spec in cases for kind in kinds]
    assert created(account, bad) == []

    port = {"selector": {"plimsoll.dev/deployment": "x"}, "ports": [{"port": 80}]}
    every = {"podSelector": {}, "ingress": [{}], "egress": [{}]}
    assert created(account, [owned("Service", "v1", "good", port, "default")]) == ["service/good"]
    others = [owned("Service", "v1", name, {**port, **change}, "default") for name, change in SERVICES.items()]
    others.append(owned("NetworkPolicy", "networking.k8s.io/v1", "all", every, "default"))
    others.append(owned("PodDisruptionBudget", "policy/v1", "all", {"maxUnavailable": 0, "selector": {}}, "default"))
    assert created(account, others) == []

    claims = made("StatefulSet", "claims", plain, "default")
    template_of_claim = {"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    claims["spec"]["volumeClaimTemplates"] = [{**template_of_claim["metadata"], **template_of_claim}]
    assert created(account, [claims]) == []
    assert created(account, [secret()]) == ["secret/x-01234567ab"]
    assert created(account, [secret(**change) for change in SECRETS]) == []

    # The settings of the operator, and what other controllers made: neither with our marks on it nor without.
    for what in (f"configmap/{OPERATOR}", "configmap/kube-root-ca.crt"):
        for change in (ADOPTED, {"data": {"a": "b"}}, {"metadata": {"labels": MARKS}}):
            said = ask(account, "patch", what, "-n", namespace, "--type=merge", "-p", json.dumps(change))
            assert "Forbidden" in said or "forbidden" in said, (what, change, said)
        assert "forbidden" in ask(account, "delete", what, "-n", namespace).lower()
