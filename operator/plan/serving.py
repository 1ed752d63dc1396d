"""How replicas compute, as status.serving has it: one value where all agree, else each kind of replica."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from plimsoll.operator.snapshot import Pod

MOST_KINDS = 16
"""Kinds of replicas that a status shows."""
DIFFERENT = "self-tests of replicas differ, by their processors or kernels: an answer depends on the replica"
_FIELDS = ("deterministic", "kernels", "digest", "reason")


def serving(pods: Iterable[Pod]) -> Mapping[str, Any] | None:
    """What `pods` found at their start; None before one of them has.

    Replicas with different digests are not deterministic together: a request may reach any of them.
    """
    pages = [pod.page.serving for pod in pods if pod.page and pod.page.serving]
    counts = Counter(tuple(page.get(name) for name in _FIELDS) for page in pages)
    if not counts:
        return None
    ordered = sorted(counts, key=lambda kind: (-counts[kind], repr(kind)))
    kinds = [{key: value for key, value in zip(_FIELDS, kind, strict=True) if value is not None} for kind in ordered]
    if len(kinds) == 1:
        return kinds[0]
    found = {name: value for name, value in kinds[0].items() if all(kind.get(name) == value for kind in kinds)}
    found["deterministic"] = all(kind["deterministic"] for kind in kinds) and "digest" in found
    reasons = [kind["reason"] for kind in kinds if "reason" in kind]
    if not found["deterministic"]:
        found["reason"] = reasons[0] if reasons else DIFFERENT
    each = [{**kind, "replicas": counts[key]} for key, kind in zip(ordered, kinds, strict=True)]
    return {**found, "kinds": each[:MOST_KINDS]}
