"""What can be known before a weight is read: whether groups divide, what it takes, what would break later."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from plimsoll.api.blocks import stored_blocks
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.families.registry import find_family
from plimsoll.api.job_budget import (
    JobLoad,
    JobNeeds,
    job_needs,
    least_disk,
    process_bytes,
)
from plimsoll.api.job_ways import OPTIONS, least_line, memory_ways
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantity import format_bytes
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.quantjob.devices import check_devices
from plimsoll.quantjob.groups import groupings_of
from plimsoll.quantjob.recipe import GROUP_SIZES, Recipe
from plimsoll.quantjob.rounding import MOST_SCALE
from plimsoll.quantjob.steps import OnShare
from plimsoll.quantjob.streamed import not_finite, runs
from plimsoll.quantjob.walk import WalkPlan, too_large
from plimsoll.quantjob.workers import Workers
from plimsoll.runtime.kernels.forecast import foreseen_libraries, libraries_note

#: Tensor-parallel sizes that people use.
PARALLEL = (2, 4, 8)
#: Tensors between two looks at the progress.
_AT_ONCE = 8
#: Sequences at once beyond which a thread has nothing more to do.
_BATCH_PER_THREAD = 2


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes:
        needs: bytes of memory and disk.
        least_disk: bytes that lie on the disk at once however it goes.
        plan: how much is computed and held at once in the memory that there is.
        workers: processes that share the searches.
        notes: what a person should know and nothing fails for.
    """

    needs: JobNeeds
    least_disk: int
    plan: WalkPlan
    workers: int
    notes: tuple[str, ...]


def preflight(
    facts: ModelFacts, recipe: Recipe, samples: int, length: int, held_out: int = 0, *, memory: int,
    batch: int | None, threads: int, workers: int = 1, devices: tuple[str, ...] = (), device_memory: int | None = None,
) -> Preflight:  # fmt: skip
    """What a job of this recipe takes and does.

    Args:
        batch: what was asked for; None for as many as are of use and fit.
        workers: processes that share the searches.
        devices: what searches run on, beside this process; none for the CPU.
        device_memory: bytes of each that may be used; None for all.

    Raises SpecError where the recipe cannot be for this model, DoesNotFitError where `memory` bytes are too few.
    """
    if facts.quantization is not None:
        raise SpecError(
            "is quantized already", field="SOURCE", value=facts.quantization.format,
            fix="Quantize the checkpoint that it was made of",
        )  # fmt: skip
    check_shapes(facts, recipe)
    # What looks at no text holds no hidden states of it.
    samples = samples if recipe.calibrates and groupings_of(facts) else 0
    if not samples:
        if workers > 1 and not recipe.calibrates:
            raise SpecError(
                "goes with method awq, and this recipe searches nothing", field="--workers", value=workers,
                fix="Leave it out, or use --method awq",
            )  # fmt: skip
        workers = 1
    libraries = foreseen_libraries("cpu")
    load = JobLoad(
        recipe.method,
        recipe.bits,
        recipe.group_size,
        samples,
        length,
        held_out=held_out,
        libraries=libraries,
        workers=workers,
    )
    if devices:
        load = replace(load, workers=1, devices=len(devices))
    needs, plan = _plan(facts, load, memory, batch, threads)
    check_devices(devices, device_memory, facts, needs, load)
    notes = [*_parallel_notes(facts, recipe), *filter(None, [libraries_note(libraries)])]
    if blocks := stored_blocks(facts):
        notes.append(
            f"the source holds {blocks} blocks: they are rounded a second time, and the loss is measured from them and "
            "not from the model they were made of"
        )
    if recipe.calibrates and not groupings_of(facts):
        notes.append(f"no groupings are known for {facts.architecture}: its linears are rounded to nearest")
    return Preflight(needs, least_disk(facts, load), plan, load.workers, tuple(notes))


def check_room(found: Preflight, folder: Path, free: int, done: int) -> str | None:
    """What a person should know of the disk; None where there is room for all that may be written.

    Args:
        free: bytes, where `folder` is.
        done: bytes that lie in it already.

    Raises:
        DoesNotFitError: it cannot end well.
    """
    needed = max(0, found.needs.disk - done)
    if free + done < found.least_disk:
        raise DoesNotFitError(
            f"has {format_bytes(free)} free, and at least {format_bytes(found.least_disk - done)} more are written: "
            "the output, and hidden states beside it", field=str(folder),
            ways=(f"{format_bytes(needed)} free there", "another --work-dir with as much"),
        )  # fmt: skip
    if free >= needed:
        return None
    return f"{folder} has {format_bytes(free)} free, and as much as {format_bytes(needed)} more may be written there"


def check_weights(checkpoint: Checkpoint, recipe: Recipe, workers: Workers, progress: OnShare) -> None:
    """Read every weight once: one that is found unusable after hours costs these hours.

    Raises CheckpointError naming the tensor that cannot be read, holds a value that is not finite, or one too large.
    """
    names = list(expected_tensors(checkpoint.facts))
    largest = MOST_SCALE * (127 if recipe.bits == 8 else 15)
    prefix = find_family(checkpoint.facts.architecture).names.layer.partition("{}")[0]

    def check(name: str) -> None:
        shape = checkpoint.tensors[name].shape
        for _, _, rows in runs(checkpoint, name):
            most = float(rows.abs().max())
            if not most < float("inf"):
                raise not_finite(f"{checkpoint.path}: {name}")
            if most > largest and name.startswith(prefix) and len(shape) == 2:
                raise too_large(name)

    for start in range(0, len(names), _AT_ONCE):
        progress(start / len(names), min(1.0, (start + _AT_ONCE) / len(names)))
        workers.map(check, names[start : start + _AT_ONCE])


def check_shapes(facts: ModelFacts, recipe: Recipe) -> None:
    """Raises SpecError naming a matrix that the groups or the format cannot hold, and what can."""
    linears = dict(_linears(facts))
    size = recipe.group_size
    if size and (wrong := {name: shape for name, shape in linears.items() if shape[1] % size}):
        fits = [size for size in GROUP_SIZES if all(columns % size == 0 for _, columns in linears.values())]
        fix = f"Use {' or '.join(map(str, fits))}" if fits else "Use --method int8, which has no groups"
        name, (_, columns) = next(iter(wrong.items()))
        message = f"does not divide the {columns} columns of {name}{_others(wrong)}"
        raise SpecError(message, field="--w-group-size", value=size, fix=fix)
    if not size and (wrong := {name: shape for name, shape in linears.items() if shape[1] % 4}):
        name, (_, columns) = next(iter(wrong.items()))
        message = f"packs four codes to a word, and {name} has {columns} columns{_others(wrong)}"
        raise SpecError(message, field="--method", value=recipe.method, fix="Leave this checkpoint as it is")
    if recipe.format == "awq" and (wrong := {name: shape for name, shape in linears.items() if shape[0] % 8}):
        name, (rows, _) = next(iter(wrong.items()))
        message = f"packs eight rows to a word, and {name} has {rows}{_others(wrong)}"
        raise SpecError(message, field="--format", value=recipe.format, fix="Use compressed-tensors")


def _others(wrong: dict[str, tuple[int, int]]) -> str:
    return f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""


def _linears(facts: ModelFacts) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name in its layer, [N, K]) of the linears of one layer."""
    prefix = find_family(facts.architecture).names.layer.format(0)
    for name, shape in expected_tensors(facts).items():
        if name.startswith(prefix) and len(shape) == 2:
            yield name.removeprefix(prefix).removesuffix(".weight"), (shape[0], shape[1])


def _parallel_notes(facts: ModelFacts, recipe: Recipe) -> Iterator[str]:
    """Tensor-parallel sizes that the model takes and its groups do not, where an engine cuts evenly."""
    if not recipe.group_size:
        return
    names = find_family(facts.architecture).names
    linears = dict(_linears(facts))
    for size in PARALLEL:
        if facts.num_heads % size:
            continue
        # These two are cut along their columns.
        cut = (names.module("o"), names.module("down"))
        broken = [name for name in cut if linears[name][1] % (size * recipe.group_size)]
        if broken:
            shares = ", ".join(f"{linears[name][1]} / {size} columns of {name}" for name in broken)
            yield (
                f"groups of {recipe.group_size} do not divide {shares}: engines that cut evenly cannot serve it at "
                f"tensor parallel size {size}; plimsoll cuts between groups and can"
            )


def _plan(facts: ModelFacts, load: JobLoad, memory: int, batch: int | None, threads: int) -> tuple[JobNeeds, WalkPlan]:
    """The largest batch that is of use and fits, and whether the hidden states fit beside it."""

    def needs_of(size: int) -> JobNeeds:
        return job_needs(facts, replace(load, batch=size))

    least, note = needs_of(batch or 1), libraries_note(load.libraries)
    if max(least.walk, least.evaluation) > memory:
        raise DoesNotFitError(
            f"needs {format_bytes(least.memory)} (the walk over the layers "
            f"{format_bytes(least.walk - process_bytes(load))}, evaluation "
            f"{format_bytes(max(0, least.evaluation - process_bytes(load)))}, and the process itself "
            f"{format_bytes(process_bytes(load))}{'; ' + note if note else ''}) of {format_bytes(memory)}",
            field="--memory",
            ways=(
                *memory_ways(facts, replace(load, batch=batch or 1), memory, OPTIONS),
                f"--memory {least_line(least)}",
            ),
        )  # fmt: skip
    size = batch or max(1, min(max(load.samples, load.held_out), _BATCH_PER_THREAD * threads))
    while batch is None and size > 1 and max(needs_of(size).walk, needs_of(size).evaluation) > memory:
        size -= 1
    needs = needs_of(size)
    states = 4 * load.samples * load.length * facts.hidden_size
    return needs, WalkPlan(size, in_memory=needs.walk + states <= memory)
