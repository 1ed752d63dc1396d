"""QuantizationJobs as people write them: right ones are read with their defaults, wrong ones are refused by field.

CEL needs an API server; e2e/test_quantization_crd.py asks one the same questions.
"""

from typing import Any

import pytest
import yaml

from plimsoll.api.crd import JOBS, definition, object_schema
from plimsoll.api.deployment import ModelDeployment
from plimsoll.api.errors import SpecError
from plimsoll.api.manifest import parse_job_spec, parse_manifests, parse_objects
from plimsoll.api.quantization_job import QuantizationJob, QuantizationJobSpec
from tests.support.job_manifests import (
    DATASETS,
    FULL,
    LEAST,
    OF_ONE_MACHINE,
    ON_GPUS,
    OUTPUTS,
    full,
    job_manifest,
    wrong_jobs,
)
from tests.support.manifests import OF_A_JOB, SOURCES, Wrong, manifest


def test_more_than_a_hundred_faults_are_there_to_be_found() -> None:
    assert len({wrong.what for wrong in wrong_jobs()}) >= 200


@pytest.mark.parametrize("wrong", list(wrong_jobs()), ids=lambda wrong: wrong.what)
def test_each_fault_is_refused_with_its_field(wrong: Wrong) -> None:
    with pytest.raises(SpecError) as caught:
        parse_objects(wrong.manifest)
    assert wrong.field in str(caught.value)


@pytest.mark.parametrize("change", [change for _, change, _ in OF_ONE_MACHINE])
def test_what_one_machine_has_is_taken_for_it(change: dict[str, Any]) -> None:
    assert parse_objects(job_manifest(LEAST | change))


def test_the_words_name_the_fix() -> None:
    words = {}
    for wrong in wrong_jobs():
        with pytest.raises(SpecError) as caught:
            parse_objects(wrong.manifest)
        words[wrong.what] = str(caught.value)
    assert "Leave it out" in words["eight bits of awq"]
    assert "Write self, pvc://CLAIM/PATH" in words["texts of 'c4'"]
    assert "must be a percentage such as 2%" in words["a loss of 0.02"]
    assert "neither may lie in the other" in words["an output in its source"]
    assert "pvc://CLAIM/PATH" in words["an output at 'pvc://models'"]


def test_workers_without_processors_or_a_search_are_refused_with_the_way_out() -> None:
    two = {"parallelism": {"workers": 2}}
    assert parse_job_spec(LEAST | two).parallelism.workers == 2
    with pytest.raises(SpecError, match=r"spec\.parallelism\.workers: must be at most 1, the processors of pod\.cpu"):
        parse_job_spec(LEAST | two | {"pod": {"cpu": "1"}})
    nothing = dict.fromkeys(("searchScale", "clip", "compensate"), False)
    with pytest.raises(SpecError, match=r"spec\.parallelism\.workers: goes with method awq.*found 2"):
        parse_job_spec(LEAST | two | {"weights": nothing})
    # One is what there is without the field.
    assert not parse_job_spec(LEAST | {"method": "rtn", "parallelism": {"workers": 1}}).searches


def test_every_field_of_the_crd_is_set_in_one_manifest() -> None:
    def missing(schema: dict[str, Any], value: Any, path: str) -> list[str]:
        found = []
        for name, inner in schema.get("properties", {}).items():
            if name not in value:
                found.append(f"{path}.{name}")
            elif "properties" in inner:
                found += missing(inner, value[name], f"{path}.{name}")
        return found

    # The user's own IDs stand in place of one, and accelerator.memory of the other.
    other = ["spec.pod.securityContext.assignedByCluster", "spec.pod.memory"]
    assert missing(object_schema(JOBS)["properties"]["spec"], FULL, "spec") == other


def test_a_choice_is_one_for_the_api_server_too() -> None:
    schema = object_schema(JOBS)["properties"]["spec"]["properties"]["accelerator"]["properties"]["resource"]
    assert schema["enum"] == ["cpu", "nvidia.com/gpu"]


def test_on_gpus_the_line_is_the_hosts_and_a_worker_needs_no_processor() -> None:
    found = parse_job_spec(LEAST | ON_GPUS)
    assert (found.on_gpus, found.line, found.accelerator.memory) == (True, 40 << 30, 24 << 30)
    assert parse_job_spec(full()).line == 4 << 30
    nothing = dict.fromkeys(("searchScale", "clip", "compensate"), False)
    with pytest.raises(SpecError, match=r"spec\.accelerator\.resource: goes with method awq.*found 'nvidia.com/gpu'"):
        parse_job_spec(LEAST | {"accelerator": {"resource": "nvidia.com/gpu"}, "weights": nothing})
    with pytest.raises(SpecError, match=r"spec\.pod\.memory: is the host memory of pods on GPUs.*Remove it"):
        parse_job_spec(LEAST | {"pod": {"memory": "40Gi"}})


def test_the_least_gets_defaults_that_go_with_its_method() -> None:
    awq = parse_job_spec(LEAST)
    assert (awq.method, awq.bits, awq.group_size, awq.written_format) == ("awq", 4, None, "awq")
    assert (awq.calibration.dataset, awq.backoff_limit, awq.evaluation.max_kl_divergence) == (None, 6, None)
    int8 = parse_job_spec(LEAST | {"method": "int8"})
    assert (int8.bits, int8.group_size, int8.written_format) == (8, 0, "compressed-tensors")


def test_the_fullest_is_read() -> None:
    found = parse_job_spec(full())
    assert found.evaluation.max_perplexity_increase == pytest.approx(0.025)
    assert found.evaluation.max_kl_divergence == 0.2
    assert found.accelerator.memory == 4 << 30
    assert (found.weights.clip, found.group_size, found.pod.cpu) == (False, 64, 2)


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source_is_taken(source: str) -> None:
    assert parse_job_spec({"model": {"source": source}, "output": "pvc://elsewhere/a"}).model.source == source


@pytest.mark.parametrize("texts", DATASETS)
def test_every_kind_of_dataset_is_taken(texts: str) -> None:
    spec = LEAST | {"calibration": {"dataset": texts}, "evaluation": {"dataset": texts}}
    assert parse_job_spec(spec).evaluation.dataset == texts


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_form_of_output_is_taken(output: str) -> None:
    assert parse_job_spec({"model": {"source": "hf://o/n"}, "output": output}).output == output


def test_neighbours_of_the_source_are_no_part_of_it() -> None:
    for output in ("pvc://models/qwen-awq", "pvc://models/qwen2/a", "pvc://model/qwen"):
        assert isinstance(parse_job_spec(LEAST | {"output": output}), QuantizationJobSpec)


def test_both_kinds_stand_in_one_file() -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}}
    text = yaml.safe_dump_all([claim, job_manifest(LEAST, "qwen-awq"), manifest(OF_A_JOB)])
    job, deployment = parse_objects(text)
    assert isinstance(job, QuantizationJob)
    assert isinstance(deployment, ModelDeployment)
    assert deployment.spec.model.quantization_job == job.metadata.name
    assert parse_manifests(text) == [deployment]


def test_a_wrong_job_beside_a_right_deployment_is_refused() -> None:
    text = yaml.safe_dump_all([manifest(OF_A_JOB), job_manifest(LEAST | {"output": "pvc://models"})])
    with pytest.raises(SpecError, match=r"spec\.output"):
        parse_manifests(text)


def test_a_job_alone_is_no_deployment() -> None:
    with pytest.raises(SpecError, match="holds no ModelDeployment"):
        parse_manifests(job_manifest(LEAST))


def test_two_jobs_of_one_name_are_refused_and_a_deployment_may_share_it() -> None:
    with pytest.raises(SpecError, match="two quantization jobs have this name"):
        parse_objects(yaml.safe_dump_all([job_manifest(LEAST), job_manifest(LEAST | {"seed": 1})]))
    assert len(parse_objects(yaml.safe_dump_all([job_manifest(LEAST, "demo"), manifest(OF_A_JOB)]))) == 2


def test_a_list_shows_phase_percent_eta_loss_output_age_and_reason() -> None:
    version = definition(JOBS)["spec"]["versions"][0]
    narrow = [column["name"] for column in version["additionalPrinterColumns"] if not column["priority"]]
    assert narrow == ["Phase", "Percent", "ETA", "KL", "Perplexity", "Output", "Age", "Message"]
    assert "scale" not in version["subresources"]
