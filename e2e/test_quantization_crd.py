"""What the API server makes of the CRD of QuantizationJobs, as e2e/test_crd.py has it for deployments."""

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from e2e.cluster import PATHS, Cluster, RefusedError
from tests.support.job_manifests import (
    DATASETS,
    LEAST,
    OF_ONE_MACHINE,
    ON_GPUS,
    OUTPUTS,
    full,
    job_manifest,
    wrong_jobs,
)
from tests.support.manifests import SOURCES, Wrong

PLACE = PATHS["quantizationjobs"]
DRY = PLACE.format("default") + "?dryRun=All&fieldValidation=Strict"


def refusal(cluster: Cluster, wrong: dict[str, Any]) -> str:
    """The API server's words; empty where it takes it."""
    try:
        cluster.api("POST", DRY, wrong)
    except RefusedError as refused:
        return str(json.loads(refused.words)["message"])
    return ""


def test_each_wrong_job_is_refused_with_its_field(cluster: Cluster) -> None:
    faults = list(wrong_jobs())
    faults += [Wrong(what, job_manifest(LEAST | change), field) for what, change, field in OF_ONE_MACHINE]
    assert len(faults) >= 200
    seen = [(wrong, refusal(cluster, wrong.manifest)) for wrong in faults]
    assert [(wrong.what, words[:300]) for wrong, words in seen if wrong.field not in words] == []
    words = {wrong.what: said for wrong, said in seen}
    assert "write pvc://CLAIM/PATH" in words["a path of one machine"]
    assert "Write self, pvc://CLAIM/PATH" in words["texts of 'c4'"]
    assert "neither may lie in the other" in words["an output in its source"]
    assert "must be 4, or 8 with method int8" in words["eight bits of awq"]


def test_what_is_right_is_taken(cluster: Cluster) -> None:
    right = [LEAST, full(), LEAST | {"method": "int8"}, LEAST | {"method": "rtn", "format": "compressed-tensors"}]
    right += [{"model": {"source": source}, "output": "pvc://elsewhere/a"} for source in SOURCES]
    right += [LEAST | {"calibration": {"dataset": texts}} for texts in DATASETS]
    right += [{"model": {"source": "hf://o/n"}, "output": output} for output in OUTPUTS]
    right += [LEAST | ON_GPUS, LEAST | {"accelerator": {"resource": "nvidia.com/gpu"}}]
    right += [LEAST | {"output": "pvc://models/qwen2/a"}, LEAST | {"output": "pvc://model/qwen"}]
    assert [(spec, words) for spec in right if (words := refusal(cluster, job_manifest(spec)))] == []


@pytest.fixture
def here(cluster: Cluster) -> Iterator[str]:
    name = f"plimsoll-qjob-{uuid.uuid4().hex[:6]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_a_spec_may_be_corrected_until_the_job_has_started(cluster: Cluster, here: str) -> None:
    place = f"{PLACE.format(here)}/demo-awq"
    cluster.kubectl("create", "-n", here, "-f", "-", stdin=yaml.safe_dump(job_manifest(full())))
    # Not yet looked at: in progress for what waits by kstatus.
    assert cluster.api("GET", place)["status"] == {"observedGeneration": 0}

    def change(**spec: Any) -> None:
        cluster.api("PATCH", place, {"spec": spec}, kind="merge-patch")

    change(seed=8)
    cluster.api("PATCH", f"{place}/status", {"status": {"phase": "Refused"}}, kind="merge-patch")
    change(seed=9)
    status = {"phase": "Quantizing", "startTime": "2026-01-01T00:00:00Z", "progress": {"percent": 31, "eta": "4m"}}
    cluster.api("PATCH", f"{place}/status", {"status": status}, kind="merge-patch")
    with pytest.raises(RefusedError, match="immutable once the job has started"):
        change(seed=10)
    # What is no spec may change, and so may the status.
    cluster.api("PATCH", place, {"metadata": {"labels": {"team": "search"}}}, kind="merge-patch")
    cluster.api("PATCH", f"{place}/status", {"status": {"phase": "Evaluating"}}, kind="merge-patch")


def test_columns_short_name_category_and_explanations(cluster: Cluster, here: str) -> None:
    cluster.kubectl("create", "-n", here, "-f", "-", stdin=yaml.safe_dump(job_manifest(full())))
    status = {
        "phase": "Failed", "message": "GateFailed: worse", "progress": {"percent": 100, "layer": 30, "of": 30},
        "evaluation": {"increase": "+21.8%", "after": {"klMean": 0.19}}, "output": {"uri": "pvc://models/a"},
    }  # fmt: skip
    cluster.api("PATCH", f"{PLACE.format(here)}/demo-awq/status", {"status": status}, kind="merge-patch")
    head, row = cluster.kubectl("get", "qjob", "-n", here).splitlines()
    assert head.split() == ["NAME", "PHASE", "PERCENT", "ETA", "KL", "PERPLEXITY", "OUTPUT", "AGE", "MESSAGE"]
    assert re.match(r"demo-awq +Failed +100 +0.19 +\+21.8% +pvc://models/a +\d+s +GateFailed: worse", row)
    assert "quantizationjob.plimsoll.dev/demo-awq" in cluster.kubectl("get", "plimsoll", "-n", here, "-o", "name")
    explained = " ".join(cluster.kubectl("explain", "qjob.spec.evaluation.maxKLDivergence").split())
    assert "Kullback-Leibler divergence" in explained


def test_nothing_speaks_against_the_crd(cluster: Cluster) -> None:
    crd = cluster.api("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/quantizationjobs.plimsoll.dev")
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions.get("Established") == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
