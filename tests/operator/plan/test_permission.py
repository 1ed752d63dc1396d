"""What administrators let a tenant name: sources together with their servers, and accounts."""

from typing import Any

import pytest

from plimsoll.operator.settings import Settings
from tests.support.job_miniature import JobCluster, job_spec
from tests.support.miniature import Cluster, spec

HUB = "https://hub.corp.example"
CORP = Settings(allowed_sources=("hf://corp/*", "s3://models/* at https://minio.storage.svc:9000"))


def accepted(model: dict[str, Any], settings: Settings, **more: Any) -> dict[str, Any]:
    """The condition of a deployment that names this model, before anything is inspected."""
    cluster = Cluster(spec=spec(model=model, **more), settings=settings)
    cluster.act()
    return dict(cluster.condition("Accepted"))


def refusal(model: dict[str, Any], settings: Settings, **more: Any) -> str:
    found = accepted(model, settings, **more)
    assert (found["status"], found["reason"]) == ("False", "SourceNotAllowed")
    return str(found["message"])


@pytest.mark.parametrize(
    "endpoint", ["https://evil.example", "https://huggingface.co.evil.example", HUB, "https://minio.storage.svc:9000"]
)
def test_a_listed_repository_is_not_met_by_a_server_that_the_tenant_names(endpoint: str) -> None:
    words = refusal({"source": "hf://corp/llama", "endpoint": endpoint}, CORP)
    assert "spec.model.endpoint" in words
    assert endpoint in words
    assert "hf://corp/*" in words


def test_a_source_is_allowed_together_with_its_endpoint() -> None:
    both = Settings(
        allowed_sources=("hf://corp/*", f"hf://corp/* at {HUB}", "s3://own/* at https://*.storage.svc:9000")
    )
    for model in (
        {"source": "hf://corp/llama"},
        {"source": "hf://corp/llama", "endpoint": HUB},
        {"source": "s3://own/m", "endpoint": "https://minio.storage.svc:9000"},
    ):
        assert accepted(model, both)["status"] != "False", model
    assert "spec.model.source" in refusal({"source": "hf://other/llama", "endpoint": HUB}, both)
    assert "spec.model.source" in refusal({"source": "s3://own/m"}, both)
    # The endpoint of one kind is none of the other's.
    assert refusal({"source": "s3://own/m", "endpoint": HUB}, both)
    narrow = both.model_copy(update={"allowed_endpoints": ("https://minio.storage.svc:9000",)})
    assert "spec.model.endpoint" in refusal({"source": "hf://corp/llama", "endpoint": HUB}, narrow)


def test_all_of_a_kind_is_allowed_at_every_endpoint_that_is() -> None:
    for entry in ("hf://*", "*", "hf://**"):
        some = Settings(allowed_sources=(entry,))
        assert accepted({"source": "hf://org/name", "endpoint": HUB}, some)["status"] != "False", entry


def test_a_listed_repository_is_not_met_through_a_proxy_that_the_tenant_names() -> None:
    for field in ("http", "https"):
        pod = {"proxy": {field: "http://evil.example:3128"}, "caBundle": {"configMap": "mine"}}
        words = refusal({"source": "hf://corp/llama"}, CORP, pod=pod)
        assert f"spec.pod.proxy.{field}" in words
        listed = CORP.model_copy(update={"allowed_proxies": ("http://evil.example:*",)})
        assert accepted({"source": "hf://corp/llama"}, listed, pod=pod)["status"] != "False"
        assert accepted({"source": "hf://corp/llama"}, Settings(), pod=pod)["status"] != "False"


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
def test_texts_come_from_the_endpoint_of_the_model_and_are_allowed_with_it(part: str) -> None:
    listed = Settings(allowed_sources=("hf://*/model", "hf://org/* at https://hub.example", "hf://datasets/corp/*"))
    wish = job_spec(
        model={"source": "hf://org/model", "endpoint": "https://hub.example"},
        **{part: {"dataset": "hf://datasets/corp/texts"}},
    )
    cluster = JobCluster(spec=wish, settings=listed)
    cluster.settle()
    found = cluster.condition("Accepted")
    assert (found["reason"], cluster.made) == ("SourceNotAllowed", 0)
    assert "hf://datasets/corp/texts" in found["message"]
    more = (*listed.allowed_sources, "hf://datasets/corp/* at https://hub.example")
    allowed = JobCluster(spec=wish, settings=listed.model_copy(update={"allowed_sources": more}))
    allowed.settle()
    assert allowed.status["phase"] == "Complete"


@pytest.mark.parametrize("listed", [(), ("elsewhere/models",), ("*/model",), ("*/other-*",)])
def test_a_service_account_that_is_not_listed_for_the_namespace_is_refused(listed: tuple[str, ...]) -> None:
    settings = Settings(allowed_service_accounts=listed)
    for cluster in (
        Cluster(spec=spec(pod={"serviceAccountName": "models"}), settings=settings),
        JobCluster(spec=job_spec(pod={"serviceAccountName": "models"}), settings=settings),
    ):
        assert not cluster.act().actions
        found = cluster.condition("Accepted")
        assert (found["status"], found["reason"]) == ("False", "ServiceAccountNotAllowed")
        assert "spec.pod.serviceAccountName" in found["message"]
        assert "settings.allowedServiceAccounts" in found["message"]


def test_the_default_account_and_a_listed_one_are_allowed() -> None:
    for name, listed in ((None, ()), ("default", ()), ("models", ("*/models",)), ("models", ("*/mod*",))):
        pod = {"serviceAccountName": name} if name else {}
        cluster = Cluster(spec=spec(pod=pod), settings=Settings(allowed_service_accounts=listed))
        cluster.settle()
        assert cluster.status["phase"] == "Ready"
