"""The Job that quantizes: what it is told, what it sees, who may reach it, and which ends are final."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.job_budget import JobNeeds
from plimsoll.api.manifest import parse_job_spec
from plimsoll.operator import build, names
from plimsoll.operator.snapshot import Deployment
from tests.support.built import INSPECTION, SETTINGS, SOURCES, Object, inspection_of
from tests.support.job_manifests import DATASETS, LEAST, ON_GPUS, full

GIB = 1 << 30
NEEDS = JobNeeds(walk=GIB, sampling=GIB, evaluation=GIB, memory=GIB, output=GIB, scratch=GIB)


def restricted(spec: Object) -> None:
    """The Pod Security Standard of that name, and no credentials of the API."""
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True)
    assert {next(key for key in one if key != "name") for one in spec["volumes"]} <= {
        "persistentVolumeClaim", "emptyDir", "image", "configMap",
    }  # fmt: skip


def owner(spec: dict[str, Any], uid: str = "5a1d-uid") -> Deployment:
    return Deployment("team", "llama-awq", uid, 1, spec, kind="QuantizationJob")


def job(spec: dict[str, Any], image_volumes: bool = True) -> Object:
    found = replace(INSPECTION, path=inspection_of(spec).path)
    return build.job(owner(spec), parse_job_spec(spec), found, NEEDS, SETTINGS, image_volumes=image_volumes)


def pod(spec: dict[str, Any], image_volumes: bool = True) -> Object:
    found: Object = job(spec, image_volumes)["spec"]["template"]["spec"]
    return found


def arguments(spec: dict[str, Any]) -> list[str]:
    found: list[str] = pod(spec)["containers"][0]["args"]
    return found


def option(args: list[str], name: str) -> str | None:
    return args[args.index(name) + 1] if name in args else None


def mounts(container: Object) -> dict[str, Object]:
    return {one["mountPath"]: one for one in container["volumeMounts"]}


def test_the_least_is_told_everything_that_decides_the_bytes() -> None:
    args = arguments(LEAST)
    assert args[:2] == ["quantize", "file:///models/qwen"]
    told = {name: option(args, name) for name in args if name.startswith("--")}
    assert told == {
        "--work-dir": "/output/qwen-awq", "--method": "awq", "--w-bits": "4", "--format": "awq",
        "--memory": str(GIB), "--seed": "0",
        "--calib-dataset": "self", "--eval-samples": "16", "--status-port": "8001",
    }  # fmt: skip


def test_the_fullest_is_told_all_of_it() -> None:
    args = arguments(full())
    assert option(args, "--max-perplexity-increase") == "2.5%"
    assert option(args, "--max-kl-divergence") == "0.2"
    assert option(args, "--batch-size") == "4"
    assert option(args, "--workers") == "2"
    assert option(args, "--memory") == str(4 * GIB)
    assert option(args, "--calib-dataset") == "self"
    assert option(args, "--eval-dataset") == "/texts/evaluation"
    assert "--no-clip" in args
    assert "--no-search-scale" not in args
    assert option(args, "--eval-samples") == "8"
    for field, switch in (("searchScale", "--no-search-scale"), ("compensate", "--no-compensate")):
        assert switch in arguments(LEAST | {"weights": {field: False}})


def test_the_pod_gets_the_line_and_a_little_beside() -> None:
    for spec, line in ((LEAST, GIB), (full(), 4 * GIB)):
        resources = pod(spec)["containers"][0]["resources"]
        wanted = f"{(line >> 20) + 256}Mi"
        assert (resources["requests"]["memory"], resources["limits"]["memory"]) == (wanted, wanted)


def test_gpus_are_asked_for_one_a_worker_and_the_host_memory_beside() -> None:
    container = pod(LEAST | ON_GPUS)["containers"][0]
    resources, args = container["resources"], container["args"]
    assert container["image"] == SETTINGS.cuda_runtime_image
    for part in ("requests", "limits"):
        assert (resources[part]["nvidia.com/gpu"], resources[part]["memory"]) == ("4", f"{40 * 1024 + 256}Mi")
    assert [option(args, name) for name in ("--device", "--workers", "--memory", "--device-memory")] == [
        "cuda", "4", str(40 * GIB), str(24 * GIB)
    ]  # fmt: skip
    # One is a number of devices too: without it the command would take all that it sees.
    alone = pod(LEAST | {"accelerator": {"resource": "nvidia.com/gpu"}})["containers"][0]
    assert (option(alone["args"], "--workers"), option(alone["args"], "--memory")) == ("1", str(GIB))
    assert alone["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "--device-memory" not in alone["args"]
    assert "--device" not in arguments(LEAST)
    assert "nvidia.com/gpu" not in pod(LEAST)["containers"][0]["resources"]["limits"]


def test_int8_has_no_groups() -> None:
    args = arguments(LEAST | {"method": "int8"})
    assert (option(args, "--w-bits"), option(args, "--format")) == ("8", "compressed-tensors")
    assert "--w-group-size" not in args


def test_ends_that_repeat_are_final_and_evictions_cost_nothing() -> None:
    spec = job(LEAST | {"backoffLimit": 2, "ttlSecondsAfterFinished": 60})["spec"]
    evicted, final, stopped = spec["podFailurePolicy"]["rules"]
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert final["action"] == "FailJob"
    assert final["onExitCodes"] == {"containerName": "quantize", "operator": "In", "values": [1, 3]}
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [143])
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], spec["completions"]) == (2, 60, 1)
    # A failure policy asks for it, and two pods at once would write to one place.
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_it_goes_with_its_owner_and_each_object_and_spec_has_one() -> None:
    meta = job(LEAST)["metadata"]
    (reference,) = meta["ownerReferences"]
    assert (reference["kind"], reference["name"], reference["uid"]) == ("QuantizationJob", "llama-awq", "5a1d-uid")
    assert meta["labels"][names.JOB] == "llama-awq"
    assert names.DEPLOYMENT not in meta["labels"]
    named = {
        build.job_name(owner(LEAST)), build.job_name(owner(LEAST, "other")), build.job_name(owner(LEAST | {"seed": 1})),
    }  # fmt: skip
    assert len(named) == 3
    assert all(len(name) <= 63 for name in named)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("image_volumes", [True, False])
def test_every_pod_is_restricted(source: str, image_volumes: bool) -> None:
    spec = LEAST | {"model": {"source": source}, "output": "pvc://outputs/a"}
    restricted(pod(spec, image_volumes))
    (container,) = pod(spec, image_volumes)["containers"]
    assert [m["name"] for m in container["volumeMounts"] if not m.get("readOnly")] == ["output", "tmp"]


def test_source_and_output_on_one_claim_are_one_volume() -> None:
    found = pod(LEAST)
    assert [one["persistentVolumeClaim"] for one in found["volumes"] if "persistentVolumeClaim" in one] == [
        {"claimName": "models"}
    ]
    seen = mounts(found["containers"][0])
    assert seen["/models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert seen["/output"] == {"name": "models", "mountPath": "/output"}


def test_claims_that_are_only_read_are_mounted_so() -> None:
    spec = LEAST | {"calibration": {"dataset": "pvc://texts/c4.jsonl"}, "output": "pvc://outputs/a/b"}
    found = pod(spec)
    claims = {one["name"]: one["persistentVolumeClaim"] for one in found["volumes"] if "persistentVolumeClaim" in one}
    assert claims == {
        "models": {"claimName": "models", "readOnly": True}, "output": {"claimName": "outputs"},
        "calibration": {"claimName": "texts", "readOnly": True},
    }  # fmt: skip
    args = arguments(spec)
    assert (option(args, "--calib-dataset"), option(args, "--work-dir")) == (
        "/texts/calibration/c4.jsonl",
        "/output/a/b",
    )


def test_texts_of_a_config_map_are_a_folder() -> None:
    spec = LEAST | {"calibration": {"configMap": "texts"}}
    found = pod(spec)
    assert option(arguments(spec), "--calib-dataset") == "/texts/calibration"
    assert mounts(found["containers"][0])["/texts/calibration"]["readOnly"] is True
    assert any(one.get("configMap", {}).get("name") == "texts" for one in found["volumes"])


def env(spec: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value") or one.get("valueFrom") for one in pod(spec)["containers"][0]["env"]}


def test_only_a_dataset_of_the_hub_lets_it_out_and_brings_a_token() -> None:
    assert env(LEAST)["HF_HUB_OFFLINE"] == "1"
    secret = {"model": {"source": "hf://org/name", "credentialsSecret": "token"}, "output": "pvc://outputs/a"}
    assert "HF_TOKEN" not in env(secret)
    reading = env(secret | {"calibration": {"dataset": "hf://datasets/org/texts"}})
    assert "HF_HUB_OFFLINE" not in reading
    assert reading["PLIMSOLL_FORBID_LOCAL"] == "1"
    assert reading["HF_TOKEN"]["secretKeyRef"]["name"] == "token"


def policy(spec: dict[str, Any]) -> Object:
    found: Object = build.job_policy(owner(spec), parse_job_spec(spec), SETTINGS)["spec"]
    return found


def test_its_policy_lets_the_operator_in_and_only_fetching_out() -> None:
    closed = policy(LEAST)
    assert closed["egress"] == []
    (rule,) = closed["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8001}]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == "plimsoll-system"
    assert closed["podSelector"]["matchLabels"] == {names.JOB: "llama-awq", names.COMPONENT: "quantize"}
    for spec in (
        LEAST | {"model": {"source": "hf://org/name"}}, LEAST | {"evaluation": {"dataset": "hf://datasets/org/texts"}},
    ):  # fmt: skip
        assert [rule["ports"][-1]["port"] for rule in policy(spec)["egress"]] == [53, 443]


def test_its_pods_are_not_mistaken_for_a_deployments_or_for_inspections() -> None:
    found = job(LEAST | {"pod": {"labels": {"team": "search"}}})["spec"]["template"]["metadata"]["labels"]
    assert found["team"] == "search"
    assert not names.selector("llama-awq").items() <= found.items()
    assert names.SOURCE not in found


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SOURCES), st.sampled_from(DATASETS), st.sampled_from([None, *DATASETS]), st.booleans(),
    st.sampled_from(["models", "outputs", "texts"]),
)  # fmt: skip
def test_every_mount_has_its_volume_and_no_claim_two(
    source: str, calibration: str, evaluation: str | None, image_volumes: bool, claim: str
) -> None:
    spec = LEAST | {
        "model": {"source": source},
        "calibration": {"dataset": calibration},
        "output": f"pvc://{claim}/o/p",
    }
    if source == "pvc://models" and claim == "models":
        return
    if evaluation:
        spec["evaluation"] = {"dataset": evaluation}
    found = pod(spec, image_volumes)
    volumes = [one["name"] for one in found["volumes"]]
    claims = [one["persistentVolumeClaim"]["claimName"] for one in found["volumes"] if "persistentVolumeClaim" in one]
    assert len(set(volumes)) == len(volumes)
    assert len(set(claims)) == len(claims)
    for container in (*found["containers"], *found.get("initContainers", ())):
        assert {one["name"] for one in container["volumeMounts"]} <= set(volumes)
        paths = [one["mountPath"] for one in container["volumeMounts"]]
        assert len(set(paths)) == len(paths)
