"""The demo model from a hub, a bucket and an image: the same steps, the same answer."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from e2e import volumes
from e2e.cluster import eventually, host_address
from e2e.deployments import MODEL_FILE, ModelDeployment
from e2e.scene import Scene
from tests.support.hub import Hub, running_hub

BUCKET, KEY_ID, SECRET = "models", "e2e-key", "e2e-secret"


@contextmanager
def bucket(address: str, file: Path) -> Iterator[str]:
    """moto's S3 on a free port of `address`, with the model in it; yields its URL."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server(address, 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://{address}:{server.server_port}"
    try:
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET
        )
        client.create_bucket(Bucket=BUCKET)
        client.upload_file(str(file), BUCKET, f"smollm2/{MODEL_FILE}")
        yield url
    finally:
        server.shutdown()
        thread.join(10)


def _served(scene: Scene, deployment: ModelDeployment) -> str:
    """Waits until it is ready, and checks an answer and the status; returns the URL of its server."""
    steps = deployment.follow()
    url = scene.url(deployment)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    eventually(lambda: deployment.routable() == 1, 30, "the pod is behind the Service")
    answer = client.completions.create(
        model=deployment.name, prompt="The capital of France is", max_tokens=8, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    source = deployment.status["source"]
    assert source["digest"].startswith("sha256:")
    assert source["bytes"] > 90_000_000
    startup = eventually(lambda: deployment.status.get("startup"), 60, "status.startup")
    scene.result.note(steps=steps, source=source, startup=startup)
    scene.result.note(words=" ".join(f"{s['phase']}@{s['at']}" for s in steps))
    return url


def test_from_a_bucket_with_a_draft_from_there(bare: Scene, model_file: Path) -> None:
    with bucket(host_address(bare.cluster), model_file) as endpoint:
        bare.cluster.kubectl(
            "create", "secret", "generic", "s3", "-n", bare.namespace,
            f"--from-literal=AWS_ACCESS_KEY_ID={KEY_ID}", f"--from-literal=AWS_SECRET_ACCESS_KEY={SECRET}",
        )  # fmt: skip
        source = f"s3://{BUCKET}/smollm2"
        model = {"source": source, "endpoint": endpoint, "credentialsSecret": "s3"}
        # The model is its own draft: each of its guesses comes true.
        deployment = bare.deploy(model=model, serving={"draft": {"source": source}, "speculativeTokens": 4})
        url = _served(bare, deployment)
        assert SECRET not in str(deployment.get()) + str(deployment.pods())
    device = deployment.status["budget"]["perDevice"]
    assert device["draft"] == device["weights"] > 90_000_000
    guessed, kept = (_counted(url, f"spec_decode_num_{kind}_tokens") for kind in ("draft", "accepted"))
    bare.result.note(budget=device, guessed=guessed, kept=kept)
    assert 0 < kept == guessed


def _counted(url: str, name: str) -> float:
    """The counter of that name at the server's page of metrics."""
    page = httpx.get(f"{url}/metrics", timeout=10).raise_for_status().text
    [value] = re.findall(rf"^plimsoll:{name}_total{{.*}} (\S+)$", page, re.MULTILINE)
    return float(value)


def test_from_a_hub_with_a_cache_that_is_filled_once(bare: Scene, model_file: Path) -> None:
    address = host_address(bare.cluster)
    hub = Hub(repos={"plimsoll/smollm2": {MODEL_FILE: model_file.read_bytes()}}, gated={"plimsoll/smollm2"})
    with running_hub(hub, address):
        bare.cluster.kubectl(
            "create", "secret", "generic", "hub", "-n", bare.namespace, f"--from-literal=HF_TOKEN={hub.token}"
        )
        volumes.claim(bare.cluster, bare.namespace, "cache")
        model = {
            "source": "hf://plimsoll/smollm2@main", "endpoint": hub.url,
            "credentialsSecret": "hub", "cacheClaim": "cache",
        }  # fmt: skip
        deployment = bare.deploy(model=model, replicas=2)
        deployment.ready()
        bare.result.note(sent=hub.sent[MODEL_FILE])
        assert deployment.status["source"]["revision"] == hub.commit("plimsoll/smollm2")
        # Headers may be read twice; the file as a whole is not.
        size = model_file.stat().st_size
        assert size <= hub.sent[MODEL_FILE] < 1.5 * size
        bare.cluster.kubectl("scale", f"mdep/{deployment.name}", "-n", bare.namespace, "--replicas=1")
        deployment.ready()
        _served(bare, deployment)
        assert hub.sent[MODEL_FILE] < 1.5 * size
        assert hub.token not in str(deployment.get()) + str(deployment.pods())


def test_from_an_image(bare: Scene) -> None:
    source = os.environ.get("PLIMSOLL_E2E_OCI_SOURCE")
    if not source:
        pytest.skip("PLIMSOLL_E2E_OCI_SOURCE names no oci:// source")
    _served(bare, bare.deploy(model={"source": source}))


def _token(namespace: str, value: str) -> dict[str, Any]:
    meta = {"name": "hub", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"HF_TOKEN": value}}


@pytest.mark.long
def test_a_secret_that_went_missing_is_named_and_the_pod_starts_once_it_is_back(bare: Scene, model_file: Path) -> None:
    hub = Hub(repos={"plimsoll/smollm2": {MODEL_FILE: model_file.read_bytes()}}, gated={"plimsoll/smollm2"})
    with running_hub(hub, host_address(bare.cluster)):
        bare.cluster.apply(_token(bare.namespace, hub.token))
        model = {"source": "hf://plimsoll/smollm2@main", "endpoint": hub.url, "credentialsSecret": "hub"}
        deployment = bare.deploy(model=model)
        deployment.ready()
        served = deployment.identities()
        bare.cluster.delete("secrets", bare.namespace, "hub")
        bare.cluster.kubectl("scale", f"mdep/{deployment.name}", "-n", bare.namespace, "--replicas=2")

        said = deployment.wait("Ready", "False", reason="ContainerConfig")["message"]
        assert 'fetch: secret "hub" not found' in said
        bare.result.note(words=said)
        bare.cluster.apply(_token(bare.namespace, hub.token))
        deployment.ready()
        assert served < deployment.identities()


@pytest.mark.long
def test_a_token_that_is_wrong_is_named_and_a_right_one_heals(bare: Scene, model_file: Path) -> None:
    address = host_address(bare.cluster)
    hub = Hub(repos={"plimsoll/smollm2": {MODEL_FILE: model_file.read_bytes()}}, gated={"plimsoll/smollm2"})

    with running_hub(hub, address):
        bare.cluster.apply(_token(bare.namespace, "wrong"))
        model = {"source": "hf://plimsoll/smollm2@main", "endpoint": hub.url, "credentialsSecret": "hub"}
        deployment = bare.deploy(model=model)
        said: Callable[[], bool] = lambda: "401" in deployment.words() or "token" in deployment.words()  # noqa: E731
        deployment.wait("SourceReady", "False")
        eventually(said, 120, "the token is blamed")
        bare.cluster.apply(_token(bare.namespace, hub.token))
        _served(bare, deployment)
