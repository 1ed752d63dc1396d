"""From a spec to the load the budget sizes, and what of it this version cannot run."""

from dataclasses import dataclass, replace

from plimsoll.api.budget import Load
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.device import DeviceKind
from plimsoll.api.errors import NotRunYetError
from plimsoll.api.model import ModelFacts
from plimsoll.api.rope import check_length, default_length, override_rope


def load_of(spec: ModelDeploymentSpec, facts: ModelFacts, draft: ModelFacts | None = None) -> Load:
    """What `spec` wants of each device.

    Args:
        draft: of its `serving.draft`, where it has one.

    Raises:
        SpecError: `context.maxLength` is beyond what the positions of the model reach.
    """
    rope = spec.context.rope
    wish = Load(
        precision=spec.precision,
        cache_precision=spec.kv_cache.precision,
        ratio=spec.kv_cache.ratio,
        host_bytes=spec.kv_cache.host_memory or 0,
        block_size=spec.kv_cache.block_size,
        max_length=spec.context.max_length,
        tensor=spec.parallelism.tensor,
        nodes=spec.parallelism.nodes,
        max_batched_tokens=spec.serving.max_batched_tokens,
        max_running=spec.serving.max_running_requests,
        activation_precision=spec.serving.activation_precision,
        draft=draft,
    )
    return stretched(wish, facts, *((rope.type, rope.factor) if rope else (None, None)))


def stretched(wish: Load, facts: ModelFacts, rope_type: str | None, rope_factor: float | None, *fields: str) -> Load:
    """`wish` with the length that this model's positions reach, stretched where a rope is given.

    Args:
        fields: what the user calls the length and the rope; a manifest's names where left out.

    Raises:
        SpecError: `wish.max_length` is beyond what the positions of the model reach.
    """
    rope = override_rope(facts, rope_type, rope_factor)
    check_length(facts, rope, wish.max_length, *fields)
    return replace(wish, trained_length=default_length(facts, rope))


def sharing(load: Load) -> Load:
    """`load` where no line is drawn on a CPU: ranks share the machine's memory, and more of them only take more.

    `tensor: auto` is one rank a pod then.
    """
    return replace(load, tensor=load.nodes) if load.tensor == "auto" else load


#: The variable of the environment that lets an engine run what was written without a GPU to run it on.
UNTESTED = "PLIMSOLL_UNTESTED_GPU_RANKS"


@dataclass(frozen=True)
class Fields:
    """What the user calls each wish, for errors: a manifest's fields, a command's options or a library's arguments."""

    precision: str = "spec.precision"
    tensor: str = "spec.parallelism.tensor"


def refuse_not_run_yet(spec: ModelDeploymentSpec) -> None:
    """Raises NotRunYetError for what the budget sizes and this version's engine does not run."""
    kind: DeviceKind = "cpu" if spec.accelerator.resource == "cpu" else "cuda"
    nodes = spec.parallelism.nodes
    if nodes > 1 and kind == "cuda":
        raise NotRunYetError(
            "a model spread over GPUs of several pods can be planned for and is not run yet; over CPUs it is",
            field="spec.parallelism.nodes", value=nodes, fix="Use 1",
        )  # fmt: skip
    refuse_unrun(spec.precision, spec.parallelism.tensor, kind)


def refuse_unrun(
    precision: str, tensor: int | str, kind: DeviceKind | None, fields: Fields = Fields(), *, untested: bool = False
) -> None:  # fmt: skip
    """The same for wishes that are in no manifest.

    Args:
        kind: None where the device is not known yet.
        untested: whether the user has asked for what no GPU has run (`UNTESTED`).
    """
    if precision == "float16" and kind == "cpu":
        raise NotRunYetError(
            "float16 is run on GPUs only", field=fields.precision, value="float16", fix="Use bfloat16 or float32"
        )
    if tensor not in ("auto", 1) and kind == "cuda" and not untested:
        raise NotRunYetError(
            "a model spread over several GPUs can be planned for and is not run yet; over ranks of a CPU it is",
            field=fields.tensor, value=tensor, fix=f"Use 1, or try what no GPU has run with {UNTESTED}=1",
        )  # fmt: skip
