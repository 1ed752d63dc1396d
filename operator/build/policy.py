"""Who may reach a pod, whom it may reach, and how many may be taken away at once."""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from plimsoll.api.dataset import parse_dataset
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.api.source import parse_source
from plimsoll.operator import names
from plimsoll.operator.build.common import Object, metadata
from plimsoll.operator.build.source import fetched, of_draft
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment

#: Of everything outside the cluster, what no checkpoint comes from: clouds keep their credentials there.
_ANYWHERE = (
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
    {"ipBlock": {"cidr": "::/0", "except": ["fd00:ec2::/32", "fe80::/10"]}},
)
#: An address range means nothing outside some network plugins' cluster, so pods are named as well.
_PODS: Object = {"namespaceSelector": {}}
#: The cluster's, a node's cache of it, or what a pod's dnsConfig names: wherever it is, it is port 53.
DNS: Object = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}


def disruption_budget(
    deployment: Deployment, replicas: int, nodes: int = 1, *, hold: bool = False, let_go: bool = False
) -> Object:
    """What `kubectl drain` may take of `replicas` that are wanted.

    Of several replicas, one at a time: the others serve, and the next goes when its successor is ready. Of one alone
    nothing would serve while its successor loads, so a drain without a gap takes a planner that makes a second pod
    when it sees the node cordoned, and that says `hold` from the beginning: eviction follows the cordon within
    milliseconds. Without `hold` the only pod may go, draining its requests: a node that can never be emptied is worse
    than a pause. Hence `let_go` too: a successor that cannot serve is counted among the pods there should be, so that
    nothing would be left to take, and one may go all the same.

    Pods that do not serve, crashing or still loading, are never held. So of a group of `nodes` pods the first may go
    under these limits, and then the others, which no longer serve without it; pods of another group may not.

    The limit that is not wanted is written as null. That removes the value of any
    manager: the API server accepts only one of the two.
    """
    if let_go:
        limit = {"minAvailable": max(0, replicas * nodes - 1)}
    else:
        # None of one group's pods, and one where a second group is there.
        limit = {"minAvailable": 2 * nodes - 1} if replicas == 1 and hold else {"maxUnavailable": 1}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(deployment, deployment.name),
        "spec": {
            "minAvailable": None,
            "maxUnavailable": None,
            **limit,
            "selector": {"matchLabels": dict(names.selector(deployment.name))},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policy(deployment: Deployment, spec: ModelDeploymentSpec, settings: Settings) -> Object:
    """In: clients of the namespace and those that the operator's configuration names; status page and metrics for the
    operator and Prometheus. Out: what fetching needs. Probes come from the node, which policies do not hold."""
    clients = [{"podSelector": {}}, *_namespaces(settings.client_namespaces)]
    watchers = _namespaces((settings.operator_namespace, *settings.monitoring_namespaces))
    ingress: list[Object] = [
        {"from": clients, "ports": _ports(names.HTTP_PORT)},
        {"from": watchers, "ports": _ports(names.STATUS_PORT)},
    ]
    meta = metadata(deployment, deployment.name)
    return policy(meta, names.selector(deployment.name), ingress, _egress(spec))


def inspect_policy(namespace: str) -> Object:
    """Of all inspect pods of a namespace: no incoming connections; outgoing ones to all but forbidden addresses.

    One for all, since they live for seconds and of a thousand sources each may name another port.
    """
    pods = {names.MANAGED_BY: names.MANAGER, names.COMPONENT: "inspect"}
    labels = {**names.OUR_LABELS, **pods}
    meta = {"name": names.INSPECT_POLICY, "namespace": namespace, "labels": labels}
    return policy(meta, pods, [], [DNS, {"to": [_PODS, *_ANYWHERE]}])


def job_policy(job: Deployment, spec: QuantizationJobSpec, settings: Settings) -> Object:
    """In: the operator, which reads the status page. Out: what fetching the checkpoint and the texts needs."""
    rules = _egress(spec)
    texts = [name for name in (spec.calibration.dataset, spec.evaluation.dataset) if name]
    if any(parse_dataset(name).kind == "hf" for name in texts) and not rules:
        rules = [DNS, {"to": [_PODS, *_ANYWHERE], "ports": _ports(443)}]
    ingress = [{"from": _namespaces((settings.operator_namespace,)), "ports": _ports(names.STATUS_PORT)}]
    return policy(metadata(job, f"{job.name}-quantize"), names.job_selector(job.name), ingress, rules)


def policy(meta: Object, pods: Mapping[str, str], ingress: list[Object], egress: list[Object]) -> Object:
    """A NetworkPolicy of the pods with these labels."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": {
            "podSelector": {"matchLabels": dict(pods)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _egress(spec: ModelDeploymentSpec | QuantizationJobSpec) -> list[Object]:
    """To what the model is fetched from, and the draft."""
    rules = _of_source(spec)
    if isinstance(spec, ModelDeploymentSpec) and spec.serving.draft is not None:
        rules += [rule for rule in _of_source(of_draft(spec)) if rule not in rules]
    return rules


def _of_source(spec: ModelDeploymentSpec | QuantizationJobSpec) -> list[Object]:
    """Nothing for what the kubelet mounts. Policies know no host names, so ports are what can be named."""
    if not fetched(parse_source(spec.model.source)):
        return []
    found = urlsplit(spec.model.endpoint or "https://")
    port = found.port or (80 if found.scheme == "http" else 443)
    # 443 always: hubs and stores send readers on to where the bytes are.
    rules = [DNS, {"to": [_PODS, *_ANYWHERE], "ports": _ports(*sorted({443, port}))}]
    if found.hostname:
        # A Service's port is not its pods', and policies see the pods'.
        rules += [{"to": [peer]} for peer in _behind(found.hostname)]
    for address in (spec.pod.proxy.http, spec.pod.proxy.https):
        if address is not None:
            proxy = urlsplit(address)
            through = proxy.port or (443 if proxy.scheme == "https" else 80)
            rules.append({"to": [_PODS, *_ANYWHERE], "ports": _ports(through)})
            rules += [{"to": [peer]} for peer in _behind(proxy.hostname or "")]
    return rules


def _behind(host: str) -> list[Object]:
    """The pods that `host` may stand for as the name of a Service, or of a pod behind a headless one.

    A public name of two parts looks the same, and names a namespace that is not there.
    """
    _, *rest = host.split(".")
    if not rest:
        return [{"podSelector": {}}]
    if len(rest) == 1 or rest[1] == "svc":
        return _namespaces(rest[:1])
    return _namespaces(rest[1:2]) if rest[2:3] == ["svc"] else []


def _namespaces(found: Iterable[str]) -> list[Object]:
    name = "kubernetes.io/metadata.name"
    return [{"namespaceSelector": {"matchLabels": {name: namespace}}} for namespace in dict.fromkeys(found)]


def _ports(*numbers: int) -> list[Object]:
    return [{"protocol": "TCP", "port": number} for number in numbers]
