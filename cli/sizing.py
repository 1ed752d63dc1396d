"""The budget of a manifest on this machine: `plan` prints what `up` starts with."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plimsoll.api.errors import SpecError

if TYPE_CHECKING:
    from plimsoll.api.budget import Budget
    from plimsoll.api.deployment import ModelDeploymentSpec
    from plimsoll.api.device import DeviceFacts, DeviceKind
    from plimsoll.api.model import ModelFacts


@dataclass(frozen=True)
class Place:
    """Where a deployment will lie, as far as it is known."""

    card: "DeviceFacts"
    """One device; its bytes are the line of each rank."""
    cache_limit: int | None = None
    """Most of a device that becomes cache."""
    devices: tuple[int, ...] = ()
    """Bytes of each device of this machine, where the manifest draws no line and the machine says it."""
    shared: bool = False
    """Ranks share one memory, of which `card` is a rank's part."""


def place_of(spec: "ModelDeploymentSpec", kind: "DeviceKind", line: int | None) -> Place:
    """A device as long as `line`, as a MIG profile's name says, or this machine's.

    Raises SpecError where none of them says how much memory there is.
    """
    from plimsoll.api.accelerator import mig_bytes
    from plimsoll.runtime.kernels.forecast import foreseen_device
    from plimsoll.runtime.machine.cgroup import host_line

    total = line or (mig_bytes(spec.accelerator.resource) if kind == "cuda" else None)
    if total is not None:
        return Place(foreseen_device(kind, total, spec.serving.torch_rows))
    if kind == "cpu":
        nodes = spec.parallelism.nodes
        # Of a group over nodes this machine is one node.
        size = 1 if spec.parallelism.tensor == "auto" else spec.parallelism.tensor // nodes
        found, limit = host_line()
        card = foreseen_device(kind, found // size, spec.serving.torch_rows)
        return Place(card, None if limit is None else limit // size, (card.total,) * (size * nodes), True)
    cards = _cards()
    return Place(foreseen_device(kind, max(cards), spec.serving.torch_rows), devices=cards)


def sized(
    spec: "ModelDeploymentSpec", facts: "ModelFacts", place: Place, draft: "ModelFacts | None" = None
) -> "Budget":
    """What the engine will hold: `auto` chooses among what this version runs.

    Args:
        draft: of its `serving.draft`, where it has one.

    Raises DoesNotFitError with the sum and what would fit, and SpecError for a wish that is incoherent.
    """
    from plimsoll.api.activations import refuse_activations
    from plimsoll.api.budget import RUNS, budget
    from plimsoll.api.load import load_of, sharing
    from plimsoll.api.names import MANIFEST_LINE

    load = load_of(spec, facts, draft)
    load = sharing(load) if place.shared else load
    found = budget(facts, place.card, load, RUNS, place.cache_limit, MANIFEST_LINE, place.devices)
    serving = spec.serving
    refuse_activations(serving.activation_precision, found.precision, place.card.kind, serving.torch_rows)
    return found


def _cards() -> tuple[int, ...]:
    """Bytes of each GPU of this machine."""
    import torch

    found = tuple(
        int(torch.cuda.get_device_properties(index).total_memory) for index in range(torch.cuda.device_count())
    )
    if not found:
        raise SpecError(
            "is not given, and this machine has no GPU to ask", field="spec.accelerator.memory",
            fix="Set it to the memory of one card, such as 24Gi, or give --memory to `plimsoll plan`",
        )  # fmt: skip
    return found
