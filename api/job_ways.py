"""What would make a quantization job fit: each way names all that it changes, and the job's own sum has checked it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from plimsoll.api.budget import CONTEXT_BYTES
from plimsoll.api.errors import DoesNotFitError
from plimsoll.api.job_budget import MOST_WORKERS, JobLoad, JobNeeds, job_needs
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantity import format_bytes
from plimsoll.api.ways_out import MIB

#: The shortest windows, and the fewest, that are worth suggesting.
LEAST_LENGTH, LEAST_SAMPLES = 64, 8


@dataclass(frozen=True)
class JobNames:
    """What the user calls each wish, in front of its value: a manifest's fields, or options."""

    batch: str = "calibration.batchSize"
    length: str = "calibration.sequenceLength"
    samples: str = "calibration.samples"
    held_out: str = "evaluation.samples"
    workers: str = "parallelism.workers"
    memory: str = "accelerator.memory"
    device: str = "accelerator.resource"
    device_memory: str = "accelerator.memory"


#: Of a job on GPUs, whose accelerator is a device and no longer the host.
ON_GPUS = JobNames(memory="pod.memory")
OPTIONS = JobNames(
    "--batch-size", "--calib-seqlen", "--calib-samples", "--eval-samples", "--workers", "--memory", "--device",
    "--device-memory",
)  # fmt: skip


def memory_ways(facts: ModelFacts, load: JobLoad, line: int, names: JobNames = JobNames()) -> Iterator[str]:
    """Changes after which the job takes `line` bytes of memory at most, one of them each."""

    def fits(**change: Any) -> bool:
        return job_needs(facts, replace(load, **change)).memory <= line

    if load.sampled and fits(sampled=False):
        yield "calibration.dataset or calibration.configMap in place of self, so that no engine runs"
    searching, most = ("devices", load.devices) if load.devices else ("workers", load.workers)
    workers = next((count for count in range(most - 1, 0, -1) if fits(**{searching: count})), None)
    if workers is not None:
        yield f"{names.workers} {workers}"
    if load.batch > 1 and fits(batch=1):
        yield f"{names.batch} 1"
    length = _halved(load.length, LEAST_LENGTH, lambda value: fits(length=value))
    if length is not None:
        yield f"{names.length} {length}"
    elif load.batch > 1 or most > 1:
        length = _halved(load.length, LEAST_LENGTH, lambda value: fits(length=value, batch=1, **{searching: 1}))
        if length is not None:
            batch = f"{names.batch} 1 and " if load.batch > 1 else ""
            workers_too = f"{names.workers} 1 and " if most > 1 else ""
            yield f"{workers_too}{batch}{names.length} {length}"


def disk_ways(facts: ModelFacts, load: JobLoad, free: int, names: JobNames = JobNames()) -> Iterator[str]:
    """Changes after which the job writes `free` bytes at most."""

    def fits(**change: Any) -> bool:
        return job_needs(facts, replace(load, **change)).disk <= free

    def smaller(field: str, least: int) -> int | None:
        return _halved(getattr(load, field), least, lambda value: fits(**{field: value}))

    for field, least in (("length", LEAST_LENGTH), ("samples", LEAST_SAMPLES), ("held_out", LEAST_SAMPLES)):
        found = smaller(field, least)
        if found is not None:
            yield f"{getattr(names, field)} {found}"


def least_line(needs: JobNeeds) -> str:
    """The memory that the job takes as it is, as a quantity."""
    return f"{-(-needs.memory // MIB)}Mi"


def check_memory(
    facts: ModelFacts, needs: JobNeeds, line: int, load: JobLoad, names: JobNames = JobNames()
) -> None:  # fmt: skip
    """Raises DoesNotFitError with the sum, and what would fit, where `line` bytes are too few."""
    if needs.memory <= line:
        return
    steps = {"the walk": needs.walk, "evaluation": needs.evaluation, "sampling `self` text": needs.sampling}
    words = ", ".join(f"{name} {format_bytes(size)}" for name, size in steps.items() if size)
    raise DoesNotFitError(
        f"needs {format_bytes(needs.memory)} (the largest of: {words}) of {format_bytes(line)}",
        field=f"spec.{names.memory}",
        ways=(*memory_ways(facts, load, line, names), f"{names.memory} {least_line(needs)}"),
    )


def check_device(
    facts: ModelFacts, needs: JobNeeds, there: int, load: JobLoad, names: JobNames, device: str | None = None
) -> None:
    """Raises DoesNotFitError with the sum, and what would fit, where there are only `there` bytes of a device.

    `device` is what people call it; None where the user drew the line.
    """
    if needs.device <= there:
        return
    more = (replace(load, devices=count) for count in range(load.devices + 1, MOST_WORKERS + 1))
    fits = next((one.devices for one in more if job_needs(facts, one).device <= there), None)
    context, least = CONTEXT_BYTES["cuda"], f"{-(-needs.device // MIB)}Mi"
    field = names.device_memory if device is None else names.device
    raise DoesNotFitError(
        f"needs {format_bytes(needs.device)} on each device ({format_bytes(context)} context, "
        f"{format_bytes(needs.device - context)} for its share of the search), and {device or 'the line'} has "
        f"{format_bytes(there)}",
        field=field if field.startswith("--") else f"spec.{field}",
        ways=(
            *([f"{names.workers} {fits}"] if fits else []),
            f"{names.device_memory} {least}" if device is None else f"devices of {least}",
        ),
    )


def check_disk(facts: ModelFacts, needs: JobNeeds, claim: int, load: JobLoad) -> None:
    """Raises DoesNotFitError where a claim of so many bytes cannot hold the output and what it is made with."""
    if needs.disk <= claim:
        return
    raise DoesNotFitError(
        f"needs {format_bytes(needs.output)} for the output + {format_bytes(needs.scratch)} for hidden states = "
        f"{format_bytes(needs.disk)} of {format_bytes(claim)}, the size of the claim",
        field="spec.output", ways=(*disk_ways(facts, load, claim), f"a claim of {-(-needs.disk // MIB)}Mi"),
    )  # fmt: skip


def _halved(value: int, least: int, fits: Callable[[int], bool]) -> int | None:
    """The first of value / 2, value / 4, … that fits; None below `least`."""
    while value // 2 >= least:
        value //= 2
        if fits(value):
            return value
    return None
