"""The devices of this machine that a job's searches run on."""

import torch

from plimsoll.api.errors import SpecError
from plimsoll.api.job_budget import JobLoad, JobNeeds
from plimsoll.api.job_ways import OPTIONS, check_device
from plimsoll.api.model import ModelFacts
from plimsoll.quantjob.job_options import JobOptions


def devices_of(options: JobOptions) -> tuple[str, ...]:
    """As torch calls them, `--workers` of them or all; empty for the CPU.

    Raises SpecError where there are too few, or nothing is searched.
    """
    if options.device == "cpu":
        return ()
    if not options.recipe.calibrates:
        raise SpecError(
            "goes with method awq: this recipe searches nothing", field="--device", value=options.device,
            fix="Leave it out",
        )  # fmt: skip
    count = torch.cuda.device_count()
    if not count:
        raise SpecError(
            "finds no CUDA device on this machine", field="--device", value=options.device, fix="Use --device cpu"
        )
    wanted = options.workers or count
    if wanted > count:
        raise SpecError(
            f"must be at most {count}, the CUDA devices of this machine", field="--workers", value=wanted,
            fix=f"Use --workers {count}",
        )  # fmt: skip
    return tuple(f"cuda:{index}" for index in range(wanted))


def check_devices(
    devices: tuple[str, ...], line: int | None, facts: ModelFacts, needs: JobNeeds, load: JobLoad
) -> None:  # fmt: skip
    """Raises DoesNotFitError where a device holds less than the search needs, or `line` bytes of each are too few."""
    if line is not None:
        check_device(facts, needs, line, load, OPTIONS)
    for device in devices:
        total = int(torch.cuda.get_device_properties(device).total_memory)
        check_device(facts, needs, total, load, OPTIONS, device)
