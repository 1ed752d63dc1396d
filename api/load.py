"""From a spec to the load the budget sizes, and what of it this version cannot run."""

from dataclasses import dataclass

from plimsoll.api.budget import Load
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.device import DeviceKind
from plimsoll.api.errors import NotRunYetError
from plimsoll.api.model import ModelFacts
from plimsoll.api.rope import check_length, default_length, override_rope


def load_of(spec: ModelDeploymentSpec, facts: ModelFacts) -> Load:
    """What `spec` wants of each device.

    Raises:
        SpecError: `context.maxLength` is beyond what the positions of the model reach.
    """
    given, wanted = spec.context.rope, spec.context.max_length
    rope = override_rope(facts, given.type, given.factor) if given else facts.rope
    check_length(facts, rope, wanted)
    return Load(
        precision=spec.precision,
        cache_precision=spec.kv_cache.precision,
        ratio=spec.kv_cache.ratio,
        block_size=spec.kv_cache.block_size,
        max_length=wanted,
        tensor=spec.parallelism.tensor,
        max_batched_tokens=spec.serving.max_batched_tokens,
        max_running=spec.serving.max_running_requests,
        trained_length=default_length(facts, rope),
    )


@dataclass(frozen=True)
class Fields:
    """What the user calls each wish, for errors: a manifest's fields, a command's options or a library's arguments."""

    precision: str = "spec.precision"
    cache: str = "spec.kvCache.precision"
    tensor: str = "spec.parallelism.tensor"


def refuse_not_run_yet(spec: ModelDeploymentSpec) -> None:
    """Raises NotRunYetError for what the budget sizes and this version's engine does not run."""
    kind: DeviceKind = "cpu" if spec.accelerator.resource == "cpu" else "cuda"
    refuse_unrun(spec.precision, spec.kv_cache.precision, spec.parallelism.tensor, kind)


def refuse_unrun(
    precision: str, cache: str, tensor: int | str, kind: DeviceKind | None, fields: Fields = Fields()
) -> None:
    """The same for wishes that are in no manifest; `kind` is None where the device is not known yet."""
    if precision == "float16" and kind == "cpu":
        raise NotRunYetError(
            "float16 is run on GPUs only", field=fields.precision, value="float16", fix="Use bfloat16 or float32"
        )
    if cache != "auto":
        raise NotRunYetError(
            "a quantised cache can be planned for and is not run yet", field=fields.cache, value=cache,
            fix="Leave it out",
        )  # fmt: skip
    if tensor not in ("auto", 1):
        raise NotRunYetError(
            "a model spread over several devices can be planned for and is not run yet",
            field=fields.tensor, value=tensor, fix="Use 1",
        )  # fmt: skip
