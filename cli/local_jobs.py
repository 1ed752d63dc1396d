"""QuantizationJobs of a manifest on this machine, before the deployments that wait for them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plimsoll.api.deployment import ModelDeployment
from plimsoll.api.one_machine import refuse_job_on_one_machine
from plimsoll.api.quantization_job import QuantizationJob
from plimsoll.cli.job_fields import job_fields


def run_jobs(jobs: Sequence[QuantizationJob]) -> None:
    """Makes each job's output, or finds that it is there.

    Raises:
        SpecError: one reads or writes what is not on this machine; none has run then.
        typer.Exit: one failed its gate.
        PlimsollError: one could not be done.
    """
    from plimsoll.quantjob.data import check_dataset

    for job in jobs:
        refuse_job_on_one_machine(job.spec)
        texts = (("spec.calibration.dataset", job.spec.calibration.dataset),
                 ("spec.evaluation.dataset", job.spec.evaluation.dataset))  # fmt: skip
        for field, dataset in texts:
            if dataset is not None:
                check_dataset(dataset, field)
    for job in jobs:
        with job_fields(job.spec):
            _run(job)


def serving(deployments: Iterable[ModelDeployment], outputs: Mapping[str, str]) -> list[ModelDeployment]:
    """Deployments with the output of their job in its place, where it is one of these."""
    found = []
    for deployment in deployments:
        model = deployment.spec.model
        if model.quantization_job is not None and model.quantization_job in outputs:
            changes = {"source": outputs[model.quantization_job], "quantization_job": None}
            spec = deployment.spec.model_copy(update={"model": model.model_copy(update=changes)})
            deployment = deployment.model_copy(update={"spec": spec})
        found.append(deployment)
    return found


def written(objects: Iterable[ModelDeployment | QuantizationJob]) -> dict[str, str]:
    """Outputs of those jobs among `objects` that have written theirs on this machine, by the job's name."""
    from plimsoll.checkpoint.quantized.manifest import MANIFEST_NAME

    outputs = {one.metadata.name: one.spec.output for one in objects if isinstance(one, QuantizationJob)}
    return {
        name: output for name, output in outputs.items()
        if output.startswith("file://") and Path(output.removeprefix("file://"), MANIFEST_NAME).is_file()
    }  # fmt: skip


def _run(job: QuantizationJob) -> None:
    from plimsoll.cli.quantize import quantize

    spec, weights = job.spec, job.spec.weights
    increase, divergence = spec.evaluation.max_perplexity_increase, spec.evaluation.max_kl_divergence
    quantize(
        source=spec.model.source,
        work_dir=Path(spec.output.removeprefix("file://")),
        method=spec.method,
        w_bits=spec.bits,
        w_group_size=weights.group_size,
        format=spec.written_format,
        calib_dataset=spec.calibration.dataset or "self",
        calib_samples=spec.calibration.samples,
        calib_seqlen=spec.calibration.sequence_length,
        batch_size=spec.calibration.batch_size,
        search_scale=weights.search_scale,
        clip=weights.clip,
        compensate=weights.compensate,
        eval_dataset=spec.evaluation.dataset,
        eval_samples=spec.evaluation.samples,
        max_perplexity_increase=None if increase is None else f"{100 * increase:.6g}%",
        max_kl_divergence=None if divergence is None else f"{divergence:g}",
        memory=None if spec.line is None else str(spec.line),
        threads=spec.pod.cpu,
        workers=spec.parallelism.workers,
        device="cuda" if spec.on_gpus else "cpu",
        device_memory=str(spec.accelerator.memory) if spec.on_gpus and spec.accelerator.memory else None,
        shard_size="5G",
        seed=spec.seed,
    )
