"""Fields of a QuantizationJob, in place of the options of `quantize` that the same refusal names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from plimsoll.api.errors import DoesNotFitError, PlimsollError
from plimsoll.api.quantization_job import QuantizationJobSpec

#: Each option, and where the manifest has it.
FIELDS = {
    "SOURCE": "model.source",
    "--work-dir": "output",
    "--method": "method",
    "--w-bits": "weights.bits",
    "--w-group-size": "weights.groupSize",
    "--format": "format",
    "--calib-dataset": "calibration.dataset",
    "--calib-samples": "calibration.samples",
    "--calib-seqlen": "calibration.sequenceLength",
    "--batch-size": "calibration.batchSize",
    "--eval-dataset": "evaluation.dataset",
    "--eval-samples": "evaluation.samples",
    "--max-perplexity-increase": "evaluation.maxPerplexityIncrease",
    "--max-kl-divergence": "evaluation.maxKLDivergence",
    "--memory": "accelerator.memory",
    "--threads": "pod.cpu",
    "--workers": "parallelism.workers",
    "--device": "accelerator.resource",
    "--device-memory": "accelerator.memory",
    "--seed": "seed",
}


@contextmanager
def job_fields(spec: QuantizationJobSpec) -> Iterator[None]:
    """Refusals inside the block name the fields of `spec`: `calibration.samples 109` for `--calib-samples 109`."""
    known = {**FIELDS, "--memory": "pod.memory"} if spec.on_gpus else FIELDS

    def renamed(text: str) -> str:
        return re.sub(r"--[a-z][a-z-]*[a-z]", lambda found: known.get(found[0], found[0]), text)

    try:
        yield
    except PlimsollError as error:
        if error.field in known:
            error.field = f"spec.{known[error.field]}"
        error.message = renamed(error.message)
        error.fix = error.fix and renamed(error.fix)
        if isinstance(error, DoesNotFitError):
            error.ways = tuple(map(renamed, error.ways))
        raise
