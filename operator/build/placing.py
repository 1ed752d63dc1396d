"""Which nodes hold the budget of a pod on GPUs, as a node affinity over the labels of GPU feature discovery."""

from dataclasses import dataclass
from typing import Any

from plimsoll.operator.build.common import Object

MIB = 1 << 20


@dataclass(frozen=True)
class Placing:
    """What one device has to hold, and what the nodes' devices were when a revision was sized."""

    resource: str
    least: int
    """Bytes of one pod's part of a device."""
    shares: tuple[int, ...] = ()
    """Numbers of pods that share a device, of devices whose parts are large enough."""
    named: tuple[tuple[str, int], ...] = ()
    """The same with the product, of nodes whose labels give no memory."""
    small: tuple[str, ...] = ()
    """Products that are too small, of nodes whose labels give no memory."""
    unclear: tuple[str, ...] = ()
    """Products that are shared by an unknown number of pods."""
    slices: tuple[tuple[str, int], ...] = ()
    """Products that are slices of a card, and the most bytes of each: a node's label of the memory may be the whole
    card's."""


def node_affinity(placing: Placing) -> Object:
    """Any of these: a whole device that is large enough, a part of a shared one that is, or a node without labels.

    Nodes without labels stay allowed: a cluster without feature discovery has no others, and the budget then follows
    from what the user wrote.
    """
    memory, pods = f"{placing.resource}.memory", f"{placing.resource}.replicas"
    product, strategy = f"{placing.resource}.product", f"{placing.resource}.sharing-strategy"
    unmeasured = {"key": memory, "operator": "DoesNotExist"}
    alone = [
        [_number(pods, "Lt", 2)],
        [
            {"key": pods, "operator": "DoesNotExist"},
            _one_of(strategy, "NotIn", ("mps", "time-slicing")),
            *([_one_of(product, "NotIn", placing.unclear)] if placing.unclear else []),
        ],
    ]
    other = [_one_of(product, "NotIn", placing.small)] if placing.small else []

    def measured(count: int) -> list[Object]:
        """For nodes whose labels give the memory of a device that so many pods share."""
        least = placing.least * count
        small = tuple(name for name, most in placing.slices if most < least)
        return [_at_least(memory, least), *([_one_of(product, "NotIn", small)] if small else [])]

    terms = [
        *([*measured(1), *one] for one in alone),
        *([*measured(n), *_exactly(pods, n)] for n in placing.shares),
        *([unmeasured, *other, *one] for one in alone),
        *([unmeasured, _one_of(product, "In", (name,)), *_exactly(pods, n)] for name, n in placing.named),
    ]
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": expressions} for expressions in terms]
            }
        }
    }


def with_affinity(wanted: Object, ours: Object) -> Object:
    """`wanted` of the user and `ours` together: a node has to match a term of each."""
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    theirs = (wanted.get("nodeAffinity") or {}).get(required, {}).get("nodeSelectorTerms") or [{}]
    terms = [_both(one, other) for one in theirs for other in ours["nodeAffinity"][required]["nodeSelectorTerms"]]
    both = {**(wanted.get("nodeAffinity") or {}), required: {"nodeSelectorTerms": terms}}
    return {**wanted, "nodeAffinity": both}


def _both(one: Object, other: Object) -> Object:
    keys = ("matchExpressions", "matchFields")
    found = {key: [*(one.get(key) or ()), *(other.get(key) or ())] for key in keys}
    return {key: value for key, value in found.items() if value}


def _at_least(memory: str, size: int) -> Object:
    return _number(memory, "Gt", -(-size // MIB) - 1)


def _exactly(key: str, count: int) -> list[Object]:
    return [_number(key, "Gt", count - 1), _number(key, "Lt", count + 1)]


def _number(key: str, operator: str, value: int) -> Object:
    return {"key": key, "operator": operator, "values": [str(value)]}


def _one_of(key: str, operator: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"key": key, "operator": operator, "values": list(values)}
