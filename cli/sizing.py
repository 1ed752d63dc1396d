"""The budget of a manifest on this machine: `plan` prints what `up` starts with."""

from typing import TYPE_CHECKING

from plimsoll.api.errors import SpecError

if TYPE_CHECKING:
    from plimsoll.api.budget import Budget
    from plimsoll.api.deployment import ModelDeploymentSpec
    from plimsoll.api.device import DeviceFacts, DeviceKind
    from plimsoll.api.model import ModelFacts


def card_of(spec: "ModelDeploymentSpec", kind: "DeviceKind", line: int | None) -> "tuple[DeviceFacts, int | None]":
    """(the device, most of it that becomes cache): as long as `line`, as a MIG profile's name says, or this machine's.

    Raises SpecError where none of them says how much memory there is.
    """
    from plimsoll.api.accelerator import mig_bytes
    from plimsoll.runtime.kernels.forecast import foreseen_device

    total = line or (mig_bytes(spec.accelerator.resource) if kind == "cuda" else None)
    if total is not None:
        return foreseen_device(kind, total, spec.serving.torch_rows), None
    found, cache_limit = _machine_memory(kind)
    return foreseen_device(kind, found, spec.serving.torch_rows), cache_limit


def sized(spec: "ModelDeploymentSpec", facts: "ModelFacts", card: "DeviceFacts", cache_limit: int | None) -> "Budget":
    """What the engine will hold: `auto` chooses among what this version runs.

    Raises DoesNotFitError with the sum and what would fit, and SpecError for a wish that is incoherent.
    """
    from plimsoll.api.budget import RUNS, budget
    from plimsoll.api.load import load_of
    from plimsoll.api.ways_out import MANIFEST_LINE

    return budget(facts, card, load_of(spec, facts), RUNS, cache_limit, MANIFEST_LINE)


def _machine_memory(kind: str) -> tuple[int, int | None]:
    """(the line, most that becomes cache) of this machine where the manifest draws none: what the engine does then."""
    from plimsoll.runtime.machine.cgroup import host_line

    if kind == "cpu":
        return host_line()

    import torch

    if not torch.cuda.is_available():
        raise SpecError(
            "is not given, and this machine has no GPU to ask", field="spec.accelerator.memory",
            fix="Set it to the memory of one card, such as 24Gi, or give --memory to `plimsoll plan`",
        )  # fmt: skip
    return int(torch.cuda.get_device_properties(0).total_memory), None
