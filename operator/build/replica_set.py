"""One revision of the pod template. A ReplicaSet brings dead pods back while the operator is away."""

from collections.abc import Mapping
from typing import Any

from plimsoll.api.budget import Budget
from plimsoll.api.checkpoint_source import CheckpointSource
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.inspection import Inspection
from plimsoll.operator import names
from plimsoll.operator.build.common import Object, metadata
from plimsoll.operator.build.groups import grouped
from plimsoll.operator.build.placing import Placing
from plimsoll.operator.build.pod import pod_template
from plimsoll.operator.build.revision import restart_part
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment, Output


def replica_set(
    deployment: Deployment, spec: ModelDeploymentSpec, inspection: Inspection, budget: Budget, settings: Settings,
    *, revision: str, number: int, replicas: int, image_volumes: bool, version: str, output: Output | None = None,
    placing: Placing | None = None, draft: Inspection | None = None,
) -> Object:  # fmt: skip
    """The ReplicaSet NAME-REVISION.

    Args:
        spec: with what was resolved; `deployment.spec`, as the user wrote it, is what the annotation keeps.
        revision: of `deployment.spec`, by `build.revision`.
        number: counts revisions up.
        version: of the operator; another version that finds this set leaves its template alone.
        output: of a quantization job: the pods refuse any other that should lie in its place.
        placing: of a GPU: which nodes' devices hold the budget.
        draft: what was found of `spec.serving.draft`, where there is one.
    """
    annotations = {
        names.NUMBER: str(number),
        names.BUILT_BY: version,
        names.SPEC: names.canonical(restart_part(deployment.spec)),
        names.BUDGET: names.canonical(described(budget)),
        names.INSPECTED: names.canonical(served(spec.model, inspection)),
    }
    if output is not None:
        kept = {"job": output.job, "uri": output.uri, "digest": output.digest}
        annotations[names.OUTPUT] = names.canonical(kept)
    name, template = f"{deployment.name}-{revision}", pod_template(
        deployment, spec, inspection, budget, settings, revision=revision, image_volumes=image_volumes,
        digest=output.digest if output else None, placing=placing, draft=draft,
    )  # fmt: skip
    if spec.parallelism.nodes > 1:
        # The pods are kept by StatefulSets, one a group; this is the record of the revision.
        annotations[names.GROUPS] = str(replicas)
        replicas, template = 0, grouped(template, name)
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": metadata(deployment, name, labels={names.REVISION: revision}, annotations=annotations),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {**names.selector(deployment.name), names.REVISION: revision}},
            "template": template,
        },
    }


def described(budget: Budget) -> dict[str, Any]:
    """As status.budget has it."""
    several = {"ranks": [_rank(terms) for terms in budget.per_rank()]} if budget.tensor > 1 else {}
    return {
        "precision": budget.precision,
        "tensor": budget.tensor,
        "perDevice": budget.per_device(),
        **several,
        # Left out where it is not: revisions of earlier versions keep a budget without it.
        **({"cachePrecision": budget.cache_precision} if budget.cache_precision != "float" else {}),
        "kvTokens": budget.kv_tokens,
        **({"hostTokens": budget.host_blocks * budget.block_size} if budget.host_blocks else {}),
        "concurrentRequests": budget.concurrent_requests,
        "maxLength": budget.max_length,
        "rejected": [{"option": rejection.option, "reason": rejection.reason} for rejection in budget.rejected],
    }


def _rank(terms: Mapping[str, int]) -> dict[str, int]:
    names = ("rank", "total", "context", "weights", "draft", "workspace", "kvCache", "hostCache", "headroom")
    return {key: terms[key] for key in names if key in terms}


def served(model: CheckpointSource, inspection: Inspection) -> dict[str, Any]:
    """As status.source has it: the address that was asked for, and what it led to."""
    return {
        "uri": model.source, "digest": inspection.digest, "revision": inspection.revision, "bytes": inspection.bytes,
    }  # fmt: skip
