"""How many more pods of one kind the nodes would take now: what the scheduler would find, without asking it.

Amounts are whole numbers: processors in thousandths, memory and disk in bytes, pods and devices in ones.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from plimsoll.operator.parse import amount
from plimsoll.operator.shape import mapping, mappings
from plimsoll.operator.snapshot import Node

#: The kubelet puts these on nodes of itself, and every pod of a ReplicaSet tolerates the first two for five minutes;
#: a node that has one of them is not usable anyway.
_KEEPS_AWAY = frozenset({"NoSchedule", "NoExecute"})
#: Nodes that do not tell how much they have are not thought to be full of it.
_UNTOLD = frozenset({"ephemeral-storage"})

Amounts = Mapping[str, int]


def free_slots(
    nodes: Iterable[Node],
    used: Mapping[str, Amounts],
    need: Amounts,
    pod: Mapping[str, Any],
) -> int:
    """Pods that ask for `need` each and fit beside what is there, over all nodes.

    Args:
        used: by node, what the pods on it ask for together, `pods` being how many they are.
        need: of one pod, by `need_of`.
        pod: its spec, whose nodeSelector, node affinity and tolerations count.
    """
    tolerations = pod.get("tolerations") or ()
    return sum(
        _slots(node, used.get(node.name, {}), need)
        for node in nodes
        if node.usable and selects(node, pod) and tolerates(node.taints, tolerations)
    )


def room_for(
    nodes: Iterable[Node], used: Mapping[str, Amounts], template: Mapping[str, Any], /,
    among: Collection[str] | None = None,
) -> int:  # fmt: skip
    """Pods of `template` that would find a place now, on all nodes or on those `among`. `used` is what `free_slots`
    takes."""
    nodes = nodes if among is None else [node for node in nodes if node.name in among]
    return free_slots(nodes, used, need_of(template), template["spec"])


def _slots(node: Node, used: Amounts, need: Amounts) -> int:
    found: list[int] = []
    for resource, wanted in {"pods": 1, **need}.items():
        if wanted <= 0 or (resource in _UNTOLD and resource not in node.allocatable):
            continue
        found.append(max(0, node.allocatable.get(resource, 0) - used.get(resource, 0)) // wanted)
    return min(found)


def selects(node: Node, pod: Mapping[str, Any]) -> bool:
    """Whether a pod's nodeSelector and required node affinity allow `node`."""
    if any(node.labels.get(key) != value for key, value in (pod.get("nodeSelector") or {}).items()):
        return False
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(_term(node, term) for term in required.get("nodeSelectorTerms") or ())


def _term(node: Node, term: Mapping[str, Any]) -> bool:
    """An empty term matches no node."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    return bool(expressions or fields) and (
        all(_matches(node.labels, one) for one in expressions)
        and all(_matches({"metadata.name": node.name}, one) for one in fields)
    )


def _matches(labels: Mapping[str, str], expression: Mapping[str, Any]) -> bool:
    key, operator = expression["key"], expression["operator"]
    values: Sequence[str] = expression.get("values") or ()
    value = labels.get(key)
    match operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    try:
        found, bound = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return found > bound if operator == "Gt" else found < bound


def tolerates(taints: Iterable[Mapping[str, str]], tolerations: Sequence[Mapping[str, Any]]) -> bool:
    """Whether pods with `tolerations` may be placed on a node with `taints`; PreferNoSchedule is only a wish."""
    return all(
        any(_tolerates(toleration, taint) for toleration in tolerations)
        for taint in taints
        if taint.get("effect") in _KEEPS_AWAY
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, str]) -> bool:
    """An empty effect or key means all of them; a NoExecute toleration that runs out places the pod all the same."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and (toleration.get("value") or "") == (taint.get("value") or "")


def need_of(pod_template: Mapping[str, Any]) -> dict[str, int]:
    """What the scheduler counts for a pod: its containers together, or an init container where one asks for more.

    An init container that goes on running (`restartPolicy: Always`) counts with the containers, and with every init
    container after it. A pod itself serves as well as its template.

    Raises:
        ValueError: an amount is no quantity.
    """
    spec = mapping(pod_template.get("spec"))
    running: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in mappings(spec.get("initContainers")):
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":
            running = _sum(running, asked)
            peak = _most(peak, running)
        else:
            peak = _most(peak, _sum(running, asked))
    for container in mappings(spec.get("containers")):
        running = _sum(running, _requests(container))
    return {**_sum(_most(peak, running), _amounts(spec.get("overhead"))), "pods": 1}


def _requests(container: Mapping[str, Any]) -> dict[str, int]:
    """A limit without a request is one, as the API server fills it in; extended resources need not repeat it."""
    resources = mapping(container.get("resources"))
    return _amounts({**mapping(resources.get("limits")), **mapping(resources.get("requests"))})


def _amounts(quantities: Any) -> dict[str, int]:
    return {resource: amount(resource, quantity) for resource, quantity in mapping(quantities).items()}


def _sum(one: Amounts, other: Amounts) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in (*one, *other)}


def _most(one: Amounts, other: Amounts) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in (*one, *other)}
