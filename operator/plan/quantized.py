"""A deployment whose checkpoint a quantization job writes: what it waits for, and what it serves meanwhile."""

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.operator.outputs import output_of
from plimsoll.operator.plan.conditions import Condition
from plimsoll.operator.snapshot import Output, Snapshot

WAITING, FAILED, GONE = "WaitingForQuantization", "QuantizationFailed", "QuantizationJobGone"


def awaited(job: str, snapshot: Snapshot) -> tuple[Output | None, Condition | None]:
    """What is served of `job`, and SourceReady as long as that is not simply what the job has written."""
    found = snapshot.quantizing
    output = output_of(job, found, snapshot.replica_sets)
    also = f" What was served before goes on serving: {output.uri}, {output.digest}." if output else ""
    if found is None:
        if output is not None:
            text = f"QuantizationJob {job} is gone; what it wrote goes on serving: {output.uri}, {output.digest}."
            return output, Condition("SourceReady", "True", GONE, text)
        text = f"There is no QuantizationJob {job} in this namespace: apply it, this goes on by itself then."
        return None, Condition("SourceReady", "False", WAITING, text)
    if found.output is not None:
        return output, None
    if found.failed is not None:
        text = f"QuantizationJob {job} failed ({found.failed}): {found.message}. Correct and apply it again.{also}"
        return output, Condition("SourceReady", "False", FAILED, text)
    text = f"QuantizationJob {job} is {found.phase}, {found.percent} %.{also}"
    if found.message:
        text = f"QuantizationJob {job} is {found.phase}: {found.message}.{also}"
    return output, Condition("SourceReady", "False", WAITING, text)


def serving(spec: ModelDeploymentSpec, output: Output) -> ModelDeploymentSpec:
    """`spec` with the output's address as its source."""
    return spec.model_copy(
        update={"model": spec.model.model_copy(update={"source": output.uri, "quantization_job": None})}
    )
