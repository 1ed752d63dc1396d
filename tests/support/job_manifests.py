"""QuantizationJobs, right and wrong, as tests/support/manifests.py has deployments."""

import copy
from collections.abc import Iterator

from plimsoll.api.crd import JOBS, object_schema
from tests.support.manifests import ON_CPU, Manifest, Wrong, bent


def job_manifest(spec: Manifest, name: str = "demo-awq") -> Manifest:
    return {
        "apiVersion": "plimsoll.dev/v1alpha1",
        "kind": "QuantizationJob",
        "metadata": {"name": name},
        "spec": copy.deepcopy(spec),
    }


#: Every field of the CRD is set in this, but for those that exclude another.
FULL: Manifest = {
    "model": {name: part for name, part in ON_CPU["model"].items() if name != "servedName"},
    "method": "awq",
    "weights": {"bits": 4, "groupSize": 64, "searchScale": True, "clip": False, "compensate": True},
    "format": "awq",
    "calibration": {"dataset": "self", "configMap": "texts", "samples": 16, "sequenceLength": 512, "batchSize": 4},
    "evaluation": {
        "dataset": "hf://datasets/org/texts@main/config/test", "configMap": "held-out",
        "samples": 8, "maxPerplexityIncrease": "2.5%", "maxKLDivergence": 0.2,
    },
    "output": "pvc://models/qwen/awq",
    "accelerator": {"resource": "cpu", "memory": "4Gi"},
    "parallelism": {"workers": 2},
    "pod": {
        **{name: part for name, part in ON_CPU["pod"].items() if name != "topologySpreadConstraints"},
        "priorityClassName": "low",
    },
    "backoffLimit": 3,
    "ttlSecondsAfterFinished": 600,
    "seed": 7,
}  # fmt: skip


def full() -> Manifest:
    """As far as all of it goes together: a dataset or a ConfigMap, not both."""
    found = copy.deepcopy(FULL)
    del found["calibration"]["configMap"], found["evaluation"]["dataset"]
    return found


LEAST: Manifest = {"model": {"source": "pvc://models/qwen"}, "output": "pvc://models/qwen-awq"}
DATASETS = (
    "self", "pvc://texts", "pvc://texts/a/b.jsonl", "hf://datasets/org/name", "hf://datasets/org/name@v1.0/config/test",
)  # fmt: skip
OUTPUTS = ("pvc://models/a", "pvc://my.models/a/b-c/d", "pvc://models/a b")

#: As many processors as workers are asked of a CPU alone.
ON_GPUS: Manifest = {
    "accelerator": {"resource": "nvidia.com/gpu", "memory": "24Gi"}, "parallelism": {"workers": 4},
    "pod": {"cpu": 2, "memory": "40Gi"},
}  # fmt: skip

_CALIBRATION, _EVALUATION = "spec.calibration", "spec.evaluation"
_LOSS = "maxPerplexityIncrease"
#: What types cannot say, with the field that is at fault.
_TOGETHER: tuple[tuple[str, Manifest, str], ...] = (
    ("no scheme", {"model": {"source": "org/name"}}, "spec.model.source"),
    ("an unknown scheme", {"model": {"source": "gs://bucket/prefix"}}, "spec.model.source"),
    ("no source", {"model": {}}, "spec.model.source"),
    ("an image by tag", {"model": {"source": "oci://registry/model:latest"}}, "spec.model.source"),
    ("a locked claim", {"model": {"source": "pvc://a", "credentialsSecret": "s"}}, "spec.model.credentialsSecret"),
    ("a claim in a claim", {"model": {"source": "pvc://a", "cacheClaim": "b"}}, "spec.model.cacheClaim"),
    ("a job of a job", {"model": {"source": "pvc://a", "quantizationJob": "x"}}, "spec.model.quantizationJob"),
    ("eight bits of awq", {"weights": {"bits": 8}}, "spec.weights.bits"),
    ("four bits of int8", {"method": "int8", "weights": {"bits": 4}}, "spec.weights.bits"),
    ("groups of int8", {"method": "int8", "weights": {"groupSize": 64}}, "spec.weights.groupSize"),
    ("samples of rtn", {"method": "rtn", "calibration": {"samples": 8}}, "spec.calibration.samples"),
    ("a search of rtn", {"method": "rtn", "weights": {"searchScale": True}}, "spec.weights.searchScale"),
    ("workers of int8", {"method": "int8", "parallelism": {"workers": 2}}, "spec.parallelism.workers"),
    ("no worker", {"parallelism": {"workers": 0}}, "spec.parallelism.workers"),
    ("workers without end", {"parallelism": {"workers": 65}}, "spec.parallelism.workers"),
    ("workers by the word", {"parallelism": {"workers": "auto"}}, "spec.parallelism.workers"),
    ("compensation of rtn", {"method": "rtn", "weights": {"compensate": True}}, "spec.weights.compensate"),
    ("a clip of int8", {"method": "int8", "weights": {"clip": False}}, "spec.weights.clip"),
    ("eight bits in awq's layout", {"method": "int8", "format": "awq"}, "spec.format"),
    ("two kinds of texts", {"calibration": {"dataset": "self", "configMap": "a"}}, _CALIBRATION),
    ("two kinds of held-out texts", {"evaluation": {"dataset": "self", "configMap": "a"}}, _EVALUATION),
    *(
        (f"texts of {texts!r}", {part: {"dataset": texts}}, f"spec.{part}.dataset")
        for part in ("calibration", "evaluation")
        for texts in (
            "", "Self", "c4", "/data/c4.txt", "file://", "https://example.com/c4", "s3://bucket/c4", "pvc://",
            "pvc://texts/../a", "pvc://Texts/a", "hf://org/name", "hf://datasets/name", "hf://datasets/../x",
            "hf://datasets/org/name@a@b", "hf://datasets/org/name/../b",
        )
    ),
    *(
        (f"a loss of {amount!r}", {"evaluation": {_LOSS: amount}}, f"{_EVALUATION}.{_LOSS}")
        for amount in ("2", "2 %", "-1%", "two%", "%", "1e3%", "12345%", ".5%", 0.02)
    ),
    ("no divergence at all", {"evaluation": {"maxKLDivergence": 0}}, f"{_EVALUATION}.maxKLDivergence"),
    *(
        (f"an output at {uri!r}", {"output": uri}, "spec.output")
        for uri in (
            "", "pvc://models", "pvc://models/", "pvc://models/a/", "pvc:///a", "pvc://Models/a", "s3://bucket/a",
            "file://", "models/a", "pvc://models/a/../b", "pvc://models//a", "pvc://models/./a", "hf://org/name",
        )
    ),
    ("an output on its source", {"model": {"source": "pvc://m/a"}, "output": "pvc://m/a"}, "spec.output"),
    ("an output in its source", {"model": {"source": "pvc://m/a"}, "output": "pvc://m/a/b"}, "spec.output"),
    ("an output in the whole claim", {"model": {"source": "pvc://m"}, "output": "pvc://m/b"}, "spec.output"),
    ("an output around its source", {"model": {"source": "pvc://m/a/b"}, "output": "pvc://m/a"}, "spec.output"),
    ("a slice of a GPU", {"accelerator": {"resource": "nvidia.com/mig-1g.10gb"}}, "spec.accelerator.resource"),
    ("GPUs by their vendor", {"accelerator": {"resource": "amd.com/gpu"}}, "spec.accelerator.resource"),
    ("GPUs of rtn", {"method": "rtn", "accelerator": {"resource": "nvidia.com/gpu"}}, "spec.accelerator.resource"),
    ("GPUs of int8", {"method": "int8", "accelerator": {"resource": "nvidia.com/gpu"}}, "spec.accelerator.resource"),
    ("no GPU", ON_GPUS | {"parallelism": {"workers": 0}}, "spec.parallelism.workers"),
    *(
        (f"memory {amount!r}", {"accelerator": {"memory": amount}}, "spec.accelerator.memory")
        for amount in ("24GiB", "0", "-1Gi", "2Pi", "")
    ),
    *((f"cpu {amount!r}", {"pod": {"cpu": amount}}, "spec.pod.cpu") for amount in ("0", "two", "1025")),
    ("a label of ours", {"pod": {"labels": {"plimsoll.dev/quantization-job": "x"}}}, "spec.pod.labels"),
    ("memory of its pod", {"pod": {"memory": "1Gi"}}, "spec.pod.memory"),
)  # fmt: skip
#: What types take, for `plimsoll up`, and a cluster does not.
OF_ONE_MACHINE: tuple[tuple[str, Manifest, str], ...] = (
    ("a path of one machine", {"model": {"source": "file:///models/a"}}, "spec.model.source"),
    ("texts of one machine", {"calibration": {"dataset": "file:///texts"}}, "spec.calibration.dataset"),
    ("an output on one machine", {"output": "file:///models/b"}, "spec.output"),
)
_NAMES = ("1demo", "de.mo", "a" * 41, "x-", "0")


def wrong_jobs() -> Iterator[Wrong]:
    """One fault each: of shape for every field of the schema, of sense from the list above."""
    yield from bent(object_schema(JOBS)["properties"]["spec"], (), "spec", lambda _: job_manifest(full()))
    for what, change, field in _TOGETHER:
        yield Wrong(what, job_manifest(LEAST | change), field)
    for name in _NAMES:
        yield Wrong(f"name {name[:12]}", job_manifest(LEAST, name), "metadata.name")
    for what, spec in (("a list", []), ("words", "quantize")):
        yield Wrong(what, job_manifest({}) | {"spec": spec}, "spec")
    yield Wrong("no output", job_manifest({"model": LEAST["model"]}), "spec.output")
