"""What a quantization is to make, from what, within which limits."""

from dataclasses import dataclass
from pathlib import Path

from plimsoll.api.choice import check_choice
from plimsoll.api.errors import SpecError
from plimsoll.api.gate import Limits
from plimsoll.api.job_budget import MOST_WORKERS
from plimsoll.api.quantity import format_bytes
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.tokens import TokenPlan
from plimsoll.quantjob.walk import SHARD_BYTES


@dataclass(frozen=True)
class JobOptions:
    """What is asked for.

    Attributes:
        source: the checkpoint's path on this machine.
        name: what people call it.
        out: the folder to be.
        memory: bytes that the process may take.
        batch: sequences computed at once; None for as many as are of use and fit.
        workers: processes that share the searches; None for one on the CPU, and for one a device.
        device: `cuda` for searches on the first `workers` devices, or on all.
        device_memory: bytes of each device that the search may take; None for all that it has.
        shard_bytes: most bytes of tensors in a file of the output.
        fitted: `group_size` and `length` where the recipe's and the plan's are defaults: a smaller one is taken where
            the model asks for it.
    """

    source: Path
    name: str
    out: Path
    recipe: Recipe
    plan: TokenPlan
    limits: Limits
    memory: int
    batch: int | None = None
    threads: int | None = None
    shard_bytes: int = SHARD_BYTES
    fitted: frozenset[str] = frozenset()
    workers: int | None = None
    device: str = "cpu"
    device_memory: int | None = None

    def __post_init__(self) -> None:
        """Raises SpecError naming the option."""
        check_choice(self.device, ("cpu", "cuda"), "--device")
        if self.device == "cpu" and self.device_memory is not None:
            found = format_bytes(self.device_memory)
            raise SpecError("goes with --device cuda", field="--device-memory", value=found, fix="Leave it out")
        if self.workers is None:
            return
        if not 1 <= self.workers <= MOST_WORKERS:
            raise SpecError(f"must be 1 to {MOST_WORKERS}", field="--workers", value=self.workers)
        if self.device == "cpu" and self.threads is not None and self.workers > self.threads:
            raise SpecError(
                f"must be at most {self.threads}, the --threads that they share", field="--workers", value=self.workers,
                fix=f"Use --workers {self.threads}, or --threads {self.workers}",
            )  # fmt: skip
