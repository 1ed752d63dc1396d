"""What stands around the pods: the address, who may call, what may be taken away, where the metrics are."""

from typing import Any

import pytest
from hypothesis import given

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.operator import build, names
from plimsoll.operator.settings import Settings
from tests.support.built import DIGEST, MINIMAL, SETTINGS, Object, Spec, deployment, specs


def parsed(spec: Spec) -> ModelDeploymentSpec:
    return ModelDeploymentSpec.model_validate(spec)


def policy(model: dict[str, Any], settings: Settings = SETTINGS) -> Object:
    spec = {**MINIMAL, "model": model}
    found: Object = build.network_policy(deployment(spec), parsed(spec), settings)["spec"]
    return found


def ports(rule: Object) -> list[int]:
    return [port["port"] for port in rule.get("ports", ())]


def test_the_service_has_the_endpoint_and_not_the_status_page() -> None:
    found = build.service(deployment(MINIMAL))
    assert [(port["name"], port["port"]) for port in found["spec"]["ports"]] == [("http", 8000)]
    assert found["metadata"]["name"] == "llama"


def test_clients_reach_the_endpoint_and_watchers_the_status_page() -> None:
    found = policy({"source": "pvc://models"})
    clients, watchers = found["ingress"]
    assert ports(clients) == [names.HTTP_PORT]
    assert clients["from"][0] == {"podSelector": {}}
    assert ports(watchers) == [names.STATUS_PORT]
    spaces = [next(iter(one["namespaceSelector"]["matchLabels"].values())) for one in watchers["from"]]
    assert spaces == ["plimsoll-system", "monitoring"]


@given(specs())
def test_no_rule_is_empty_by_mistake(spec: Spec) -> None:
    # An empty `from` or `to` means everybody.
    nobody = Settings(client_namespaces=(), monitoring_namespaces=())
    found = build.network_policy(deployment(spec), parsed(spec), nobody)["spec"]
    assert all(rule["from"] and rule["ports"] for rule in found["ingress"])
    assert all(rule.get("to", True) for rule in found["egress"])
    assert set(found["policyTypes"]) == {"Ingress", "Egress"}


@pytest.mark.parametrize("source", ["pvc://models", f"oci://r.example/m@{DIGEST}"])
def test_what_the_kubelet_mounts_needs_no_way_out(source: str) -> None:
    assert policy({"source": source})["egress"] == []


@pytest.mark.parametrize(
    ("endpoint", "wanted"),
    [
        (None, [443]),
        ("https://hub.example.org", [443]),
        ("https://hub.example.org:8443", [443, 8443]),
        ("http://10.1.2.3", [80, 443]),
    ],
)
def test_fetching_reaches_the_names_and_the_service(endpoint: str | None, wanted: list[int]) -> None:
    model = {"source": "hf://org/name"} | ({"endpoint": endpoint} if endpoint else {})
    names_of, service = policy(model)["egress"]
    assert ports(names_of) == [53, 53]
    assert ports(service) == wanted
    blocks = {to["ipBlock"]["cidr"]: to["ipBlock"]["except"] for to in service["to"] if "ipBlock" in to}
    assert blocks["0.0.0.0/0"] == ["169.254.0.0/16"]


@pytest.mark.parametrize(
    ("host", "namespace"),
    [
        ("minio", None), ("minio.storage", "storage"), ("minio.storage.svc", "storage"),
        ("minio.storage.svc.cluster.local", "storage"), ("minio-0.minio.storage.svc.corp.example", "storage"),
        # Looks like a Service's name, and no namespace is called so.
        ("hub.org", "org"),
    ],
)  # fmt: skip
def test_a_service_of_the_cluster_may_have_pods_on_any_port(host: str, namespace: str | None) -> None:
    *_, pods = policy({"source": "s3://bucket/a", "endpoint": f"http://{host}:80"})["egress"]
    whose = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    assert pods == {"to": [whose if namespace else {"podSelector": {}}]}


@pytest.mark.parametrize(
    ("replicas", "hold", "wanted"),
    [
        (1, False, (None, 1)),
        (1, True, (1, None)),
        (3, False, (None, 1)),
        (3, True, (None, 1)),
        (0, True, (None, 1)),
    ],
)
def test_a_drain_takes_one_at_a_time(replicas: int, hold: bool, wanted: tuple[int | None, ...]) -> None:
    spec = {**MINIMAL, "replicas": replicas}
    found = build.disruption_budget(deployment(spec), replicas, hold=hold)["spec"]
    assert (found["minAvailable"], found["maxUnavailable"]) == wanted
    assert found["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    # However many pods there are told to be, one of those that serve may go.
    given_up = build.disruption_budget(deployment(spec), replicas, hold=hold, let_go=True)["spec"]
    assert (given_up["minAvailable"], given_up["maxUnavailable"]) == (max(0, replicas - 1), None)


@pytest.mark.parametrize("hold", [False, True])
def test_a_limit_that_somebody_put_in_place_of_ours_is_taken_out(hold: bool) -> None:
    """The API server bears one of the two, and an apply that is silent on theirs would leave it."""
    wanted = build.disruption_budget(deployment(MINIMAL), 1, hold=hold)
    ours, theirs = ("minAvailable", "maxUnavailable") if hold else ("maxUnavailable", "minAvailable")
    rest = {key: value for key, value in wanted["spec"].items() if value is not None}
    assert not build.differs(wanted, {**wanted, "spec": rest}), "null is what is not there"
    assert build.differs(wanted, {**wanted, "spec": {**rest, ours: None, theirs: 2}})
    assert (wanted["spec"][ours], wanted["spec"][theirs]) == (1, None)


def test_monitors_are_made_of_what_the_cluster_has() -> None:
    kinds = {
        apis: [one["kind"] for one in build.monitors(deployment(MINIMAL), apis, SETTINGS)]
        for apis in (
            frozenset[str](),
            frozenset({"PodMonitor"}),
            frozenset({"PodMonitor", "ServiceMonitor"}),
            frozenset({"ServiceMonitor"}),
        )
    }
    assert [*kinds.values()] == [[], ["PodMonitor"], ["PodMonitor"], ["Service", "ServiceMonitor"]]
    service, monitor = build.monitors(deployment(MINIMAL), {"ServiceMonitor"}, SETTINGS)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["name"] != "llama"


@pytest.mark.parametrize("api", ["PodMonitor", "ServiceMonitor"])
def test_a_prometheus_that_selects_by_label_finds_the_monitors(api: str) -> None:
    given = {"release": "kube-prometheus-stack", "app.kubernetes.io/managed-by": "somebody"}
    *_, plain = build.monitors(deployment(MINIMAL), {api}, SETTINGS)
    *_, found = build.monitors(deployment(MINIMAL), {api}, Settings(monitor_labels=given))
    assert found["kind"] == api
    # Ours stay ours: by them the operator knows what it made.
    ours = plain["metadata"]["labels"]
    assert found["metadata"]["labels"] == {"release": "kube-prometheus-stack", **ours}
