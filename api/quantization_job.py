"""`QuantizationJob` v1alpha1: turn a checkpoint into a 4-bit or 8-bit one, prove it is still good, write it to a claim.

As with ModelDeployment, only fields that work, an unknown one is an error, and docstrings are what `kubectl explain`
says.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from plimsoll.api import rules
from plimsoll.api.checkpoint_source import CheckpointSource, SourceAddress
from plimsoll.api.dataset import parse_dataset
from plimsoll.api.deployment import Metadata, PodPlacement
from plimsoll.api.errors import SpecError
from plimsoll.api.fields import Memory, ObjectName, Part, Processors, fault_at
from plimsoll.api.job_budget import MOST_WORKERS
from plimsoll.api.rules import RULES

QUANTIZATION_KIND = "QuantizationJob"

_PERCENT = r"^[0-9]{1,4}(\.[0-9]{1,3})?%$"


def _percent(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(_PERCENT, value, re.ASCII):
        raise ValueError("must be a percentage such as 2% or 0.5%")
    return float(value[:-1]) / 100


Percent = Annotated[
    float, BeforeValidator(_percent), WithJsonSchema({"type": "string", "pattern": _PERCENT, "maxLength": 10})
]
"""A share, as a fraction."""


def _dataset(value: str) -> str:
    try:
        found = parse_dataset(value)
    except SpecError as error:
        raise ValueError(rules.DATASET_WORDS) from error
    if value.startswith("file://"):
        return value
    if found.kind == "path" or re.search(rules.STRAY, value.partition("://")[2]):
        raise ValueError(rules.DATASET_WORDS)
    return value


DatasetAddress = Annotated[
    str, Field(max_length=1024, json_schema_extra={RULES: rules.DATASET}), AfterValidator(_dataset)
]


def _output(value: str) -> str:
    if value.startswith("file://") and value != "file://":
        return value
    if not re.fullmatch(rules.OUTPUT_FORM, value) or re.search(rules.STRAY, value.partition("://")[2]):
        raise ValueError(rules.OUTPUT_WORDS)
    return value


class Checkpoint(CheckpointSource):
    """Which checkpoint is quantized, and how it is reached."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.MODEL})

    source: SourceAddress
    """The checkpoint as it was trained, or as near to that as there is: a Hugging Face folder or one GGUF file, by
    `hf://ORG/NAME[@REVISION][/FILE.gguf]`, `pvc://CLAIM/PATH`, `s3://BUCKET/PREFIX` or `oci://IMAGE@sha256:DIGEST`."""


class Weights(Part):
    """How linear weights are held afterwards. Embedding and head stay as they are."""

    bits: Literal[4, 8] | None = None
    """Bits of a weight. Default: 4, and 8 for method int8, which go with nothing else."""
    group_size: Literal[32, 64, 128] | None = None
    """Columns that share a scale; it must divide the model's widths, and a smaller one costs memory and loses less.
    Default: the largest that divides. Goes with 4 bits."""
    search_scale: bool | None = None
    """Look for scales of input channels that keep what calibration showed to matter. Default: true. Goes with method
    awq."""
    clip: bool | None = None
    """Look for narrower ranges. Default: true. Goes with method awq."""
    compensate: bool | None = None
    """Let each column make up for the rounding of those before it. Default: true. Goes with method awq."""


class Calibration(Part):
    """The text that the search looks at. It is packed into samples, never dropped; what has been used is in the
    manifest of the output by its hash."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.TEXTS})

    dataset: DatasetAddress | None = None
    """`self`, text sampled from the model by our own engine, which needs nothing beside it; `pvc://CLAIM/PATH`, a file
    or folder (jsonl, csv, txt, parquet) on a claim of this namespace; or `hf://datasets/ORG/NAME[@REVISION][/CONFIG/SPLIT]`.
    Default: self."""
    config_map: ObjectName | None = None
    """A ConfigMap of this namespace whose values are texts, in place of a dataset; keys are file names such as
    news.txt or chats.jsonl."""
    samples: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Sequences of calibration. Default: 32 of self, which has to be drawn first; 128 of other text. Goes with method
    awq."""
    sequence_length: Annotated[int, Field(ge=16, le=32768)] | None = None
    """Tokens in each. Evaluation uses it too. Default: 512."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Sequences that are computed at once. Default: as many as fit the job's memory."""

    @model_validator(mode="after")
    def _one(self) -> "Calibration":
        if self.dataset is not None and self.config_map is not None:
            raise ValueError(rules.TEXTS_WORDS)
        return self


class Evaluation(Part):
    """Text that the output is measured on, and the limits of its loss."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.TEXTS})

    dataset: DatasetAddress | None = None
    """Held-out text, written as calibration.dataset is. Default: other text of calibration's own."""
    config_map: ObjectName | None = None
    """A ConfigMap of this namespace whose values are texts, in place of a dataset."""
    samples: Annotated[int, Field(ge=1, le=65536)] = 16
    """Sequences to measure on, of calibration.sequenceLength tokens each."""
    max_perplexity_increase: Percent | None = None
    """The gate, such as 2%: above this increase the job is Failed with reason GateFailed, and no deployment serves the
    output. Default: perplexity is measured and not judged."""
    max_kl_divergence: Annotated[float, Field(gt=0, le=100)] | None = Field(default=None, alias="maxKLDivergence")
    """The same for the mean Kullback-Leibler divergence from the model as it was, in nats a token. Default: it is
    measured and not judged."""

    @model_validator(mode="after")
    def _one(self) -> "Evaluation":
        if self.dataset is not None and self.config_map is not None:
            raise ValueError(rules.TEXTS_WORDS)
        return self


class JobAccelerator(Part):
    """What the job runs on, and the memory line it never passes."""

    resource: Literal["cpu", "nvidia.com/gpu"] = "cpu"
    """cpu, or nvidia.com/gpu: the searches of method awq run on parallelism.workers GPUs of one node. All else runs on
    processors: a layer at a time needs no GPU."""
    memory: Memory | None = None
    """On a CPU: most memory that the job may use, such as 8Gi. Batches are sized to it, and the pod requests 256Mi
    more. On GPUs: memory of one device, such as 24Gi; the pod is placed only where devices are as large. Default: the
    sum that the operator computes at admission; on GPUs, what the search needs on each device."""


class JobParallelism(Part):
    """How a job is spread over processes, or over devices."""

    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    """Processes that share the search of method awq. On a CPU: at most as many as pod.cpu. On GPUs: one for each
    device, and the pod asks for as many devices. Each takes memory. The bytes of the output do not depend on their
    number."""


class JobPod(PodPlacement):
    """The few things of the job's pod that are the cluster's business."""

    cpu: Processors | None = None
    """Processors of the pod, and threads of the job; the output's bytes do not depend on it. Default: what the node
    has; a request of 1."""
    memory: Memory | None = None
    """Most host memory that a job on GPUs may use: batches are sized to it, and the pod requests 256Mi more. Default:
    the sum that the operator computes at admission. On a CPU accelerator.memory is that, and this is refused."""


class QuantizationJobSpec(Part):
    """The desired job. The spec may be corrected until the job has started; after that it is immutable."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.QUANTIZATION})

    model: Checkpoint
    method: Literal["awq", "rtn", "int8"] = "awq"
    """awq looks for scales and ranges on calibration text (arXiv 2306.00978); rtn rounds to nearest and needs no text;
    int8 rounds each row to 8 bits."""
    weights: Weights = Weights()
    format: Literal["awq", "compressed-tensors"] | None = None
    """How the output is written: AutoAWQ's gemm layout, or compressed-tensors pack-quantized. Default: awq, and
    compressed-tensors for method int8."""
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    output: Annotated[
        str, Field(max_length=1024, json_schema_extra={RULES: rules.OUTPUT}), AfterValidator(_output)
    ]  # fmt: skip
    """Folder of the quantized checkpoint: `pvc://CLAIM/PATH`. No other job may have it. The output appears there whole
    or not at all. Files stay when the job is deleted; the same job, created again, resumes there."""
    accelerator: JobAccelerator = JobAccelerator()
    parallelism: JobParallelism = JobParallelism()
    pod: JobPod = JobPod()
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 6
    """Crashes that are retried before the job is Failed; each retry resumes at the last saved layer. Evictions, drains
    and deleted pods do not count."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=(1 << 31) - 1)] = 86400
    """Seconds that the finished batch/v1 Job and its pod are kept. The QuantizationJob and the output stay."""
    seed: Annotated[int, Field(ge=0, le=(1 << 31) - 1)] = 0
    """Same seed, same bytes."""

    @model_validator(mode="after")
    def _coherent(self) -> "QuantizationJobSpec":
        weights, eight = self.weights, self.method == "int8"
        if weights.bits is not None and weights.bits != (8 if eight else 4):
            raise fault_at(("weights", "bits"), rules.BITS_WORDS, weights.bits)
        if eight and weights.group_size is not None:
            raise fault_at(("weights", "groupSize"), rules.GROUP_WORDS, weights.group_size)
        searched = {"searchScale": weights.search_scale, "clip": weights.clip, "compensate": weights.compensate}
        for name, value in searched.items():
            if self.method != "awq" and value is not None:
                raise fault_at(("weights", name), rules.SEARCH_WORDS, value)
        if self.method != "awq" and self.calibration.samples is not None:
            raise fault_at(("calibration", "samples"), rules.SEARCH_WORDS, self.calibration.samples)
        workers, processors = self.parallelism.workers, self.pod.cpu
        if not self.searches and workers > 1:
            raise fault_at(("parallelism", "workers"), rules.SEARCH_WORDS, workers)
        if self.on_gpus and not self.searches:
            raise fault_at(("accelerator", "resource"), rules.SEARCH_WORDS, self.accelerator.resource)
        if not self.on_gpus and self.pod.memory is not None:
            raise fault_at(("pod", "memory"), rules.ONE_MEMORY_WORDS, self.pod.memory)
        if not self.on_gpus and processors is not None and workers > processors:
            words = f"must be at most {processors}, the processors of pod.cpu. Lower it, or raise pod.cpu"
            raise fault_at(("parallelism", "workers"), words, workers)
        if eight and self.format == "awq":
            raise fault_at(("format",), rules.FORMAT_WORDS, self.format)
        source = self.model.source.rstrip("/")
        if f"{self.output}/".startswith(f"{source}/") or f"{source}/".startswith(f"{self.output}/"):
            raise fault_at(("output",), rules.APART_WORDS, self.output)
        return self

    @property
    def bits(self) -> int:
        return 8 if self.method == "int8" else 4

    @property
    def group_size(self) -> int | None:
        """Columns that share a scale; 0: one scale a row; None: the largest group that divides the model."""
        return 0 if self.method == "int8" else self.weights.group_size

    @property
    def samples_itself(self) -> bool:
        """Whether text that calibrates is drawn from the model."""
        return self.calibration.config_map is None and self.calibration.dataset in (None, "self")

    @property
    def on_gpus(self) -> bool:
        """Whether devices search, one a worker."""
        return self.accelerator.resource != "cpu"

    @property
    def line(self) -> int | None:
        """Bytes of host memory that the job may use, where the spec says so."""
        return self.pod.memory if self.on_gpus else self.accelerator.memory

    @property
    def searches(self) -> bool:
        """Whether there is anything that workers share."""
        parts = (self.weights.search_scale, self.weights.clip, self.weights.compensate)
        return self.method == "awq" and any(part is not False for part in parts)

    @property
    def written_format(self) -> str:
        return self.format or ("compressed-tensors" if self.method == "int8" else "awq")


class QuantizationJob(Part):
    """Quantizes one checkpoint on a machine that need not hold it in memory, measures what that cost, and writes it."""

    api_version: Literal["plimsoll.dev/v1alpha1"]
    kind: Literal["QuantizationJob"]
    metadata: Metadata
    spec: QuantizationJobSpec
