"""What a quantization is to make, from what, within which limits."""

from dataclasses import dataclass
from pathlib import Path

from plimsoll.api.gate import Limits
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
