"""`kubectl apply` of the demo model: accepted, loaded, ready, and answering where users are."""

import json
from typing import Any

import openai
import pytest

from e2e.cluster import SERVING, Cluster, eventually, is_true
from e2e.deployments import ModelDeployment
from e2e.pods import helper_pod
from e2e.scene import Scene

CONDITIONS = {"Accepted", "SourceReady", "Progressing", "Ready", "Degraded"}
_ASK = """
import json, sys, urllib.request
body = {"model": sys.argv[2], "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
request = urllib.request.Request(sys.argv[1] + "/v1/completions", data, kind)
print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["text"])
"""


def test_an_applied_manifest_is_accepted_becomes_ready_and_answers(scene: Scene, runtime_image: str) -> None:
    deployment = scene.deploy()
    steps = deployment.follow()
    scene.result.note(steps=steps, words=" ".join(f"{s['phase']}@{s['at']}" for s in steps))
    # Whoever waits by kstatus waits for all of it, and no longer.
    assert [step["kstatus"] for step in steps] == ["InProgress"] * (len(steps) - 1) + ["Current"]
    status = deployment.status
    assert {c["type"] for c in status["conditions"]} >= CONDITIONS
    assert not is_true(status["conditions"], "Degraded")
    assert is_true(status["conditions"], "Accepted")
    assert is_true(status["conditions"], "SourceReady")
    assert (status["phase"], status["replicas"], status["readyReplicas"]) == ("Ready", 1, 1)
    assert status["endpoint"] == f"http://{deployment.name}.{scene.namespace}:8000/v1"
    assert not status.get("message")

    client = openai.OpenAI(base_url=f"{scene.url(deployment)}/v1", api_key="none", max_retries=0)
    eventually(lambda: deployment.routable() == 1, 30, "the pod is behind the Service")
    assert [m.id for m in client.models.list()] == [deployment.name]
    question = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    answer = client.chat.completions.create(model=deployment.name, messages=question, max_tokens=24, temperature=0)  # type: ignore[call-overload]
    assert "Paris" in answer.choices[0].message.content
    assert "Paris" in through_the_service(scene.cluster, scene.namespace, deployment, runtime_image)

    observed = eventually(lambda: deployment.status.get("observed"), 60, "status.observed")
    budget = deployment.status["budget"]
    scene.result.note(observed=observed, budget=budget, startup=deployment.status.get("startup"))
    assert observed["peak"] <= budget["perDevice"]["total"]


def through_the_service(cluster: Cluster, namespace: str, deployment: ModelDeployment, image: str) -> str:
    """What a pod in the namespace hears from the Service by its name."""
    url = f"http://{deployment.name}.{namespace}:8000"
    pod = helper_pod(namespace, "client", image, ["python3", "-c", _ASK, url, deployment.name])
    cluster.apply(pod)

    def ended() -> str | None:
        found = cluster.get("pods", namespace, "client") or {}
        return found.get("status", {}).get("phase") in ("Succeeded", "Failed")

    eventually(ended, SERVING, "the client's pod ended")
    return cluster.kubectl("logs", "client", "-n", namespace)


def test_a_key_from_a_secret_is_asked_for(scene: Scene) -> None:
    scene.cluster.kubectl("create", "secret", "generic", "keys", "-n", scene.namespace, "--from-literal=keys=sk-e2e\n")
    deployment = scene.deploy(serving={"apiKeysSecret": "keys"})
    deployment.ready()
    url = scene.url(deployment)
    eventually(lambda: deployment.routable() == 1, 30, "the pod is behind the Service")
    ask: dict[str, Any] = {"model": deployment.name, "prompt": "One, two,", "max_tokens": 4}
    assert openai.OpenAI(base_url=f"{url}/v1", api_key="sk-e2e").completions.create(**ask).choices
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0).completions.create(**ask)
    assert "sk-e2e" not in json.dumps(deployment.get()) + json.dumps(deployment.pods())


def test_pods_hold_no_credential_of_the_cluster_and_are_restricted(scene: Scene) -> None:
    # The namespace enforces the `restricted` standard, so a pod that runs has passed it.
    deployment = scene.deploy()
    deployment.ready()
    [pod] = deployment.pods()
    assert pod["spec"]["automountServiceAccountToken"] is False
    for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounts = {m["name"]: m for m in container["volumeMounts"]}
        assert all(m.get("readOnly") for m in mounts.values() if m["mountPath"].startswith("/models"))
    assert not [v for v in pod["spec"]["volumes"] if "projected" in v]
    where = ("exec", "-n", scene.namespace, pod["metadata"]["name"], "-c", "server", "--")
    script = "import os; print(os.getuid(), os.path.exists('/var/run/secrets/kubernetes.io'), os.access('/', os.W_OK))"
    assert scene.cluster.kubectl(*where, "python3", "-c", script).split() == ["65532", "False", "False"]
