"""What a namespace or a network asks of every container of ours: limits, identities, proxies, authorities."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.operator import build, names
from plimsoll.operator.plan.capacity import need_of
from plimsoll.operator.plan.quota import with_help
from tests.support.built import DIGEST, INSPECTION, MINIMAL, SETTINGS, Object, Spec, deployment, replica_set
from tests.support.job_manifests import LEAST

#: Digest of the template of MINIMAL, which has none of these fields.
GOLDEN = "0641ba5969"
SOURCES = ("hf://org/name", "pvc://models/a", f"oci://r.example/m@{DIGEST}")


def bodies(pod: Spec, source: str = "hf://org/name") -> Iterator[Object]:
    """Specs of every pod that a deployment and a job of this `pod` lead to."""
    spec = {**MINIMAL, "model": {"source": source}, "pod": pod}
    yield replica_set(spec, image_volumes=False)["spec"]["template"]["spec"]
    yield build.inspect_pod(deployment(spec), ModelDeploymentSpec.model_validate(spec), SETTINGS, False)["spec"]
    yield job(pod, source)


def job(pod: Spec, source: str) -> Object:
    from plimsoll.api.job_budget import job_needs
    from plimsoll.operator.plan.job_admission import _load

    wish = {**LEAST, "model": {"source": source}, "weights": {"groupSize": 32}, "pod": pod}
    spec = QuantizationJobSpec.model_validate(wish)
    needs = job_needs(INSPECTION.facts, _load(spec, INSPECTION.facts))
    found: Object = build.job(deployment(wish), spec, INSPECTION, needs, SETTINGS, image_volumes=False)
    return found["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def containers(body: Object) -> list[Object]:
    return [*body.get("initContainers", ()), *body["containers"]]


@pytest.mark.parametrize("source", SOURCES)
def test_a_quota_on_limits_finds_them_on_every_container(source: str) -> None:
    for body in bodies({"limits": {"cpu": "1500m", "ephemeralStorage": "20Gi"}}, source):
        for one in containers(body):
            limits, requests = one["resources"]["limits"], one["resources"]["requests"]
            main = one["name"] in ("server", "quantize")
            assert limits["cpu"] == ("1500m" if main else "1")
            assert limits["ephemeral-storage"] == "20Gi"
            assert requests["cpu"] == ("1" if main else "100m")


def test_a_request_that_nobody_wrote_fits_below_the_limit() -> None:
    for body in bodies({"limits": {"cpu": "50m"}}):
        assert {one["resources"]["requests"]["cpu"] for one in containers(body)} == {"50m"}
        assert need_of({"spec": body})["cpu"] == 50


def test_a_limit_below_the_request_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"must be at least pod\.cpu, which is 4") as error:
        ModelDeploymentSpec.model_validate({**MINIMAL, "pod": {"cpu": 4, "limits": {"cpu": 2}}})
    assert error.value.errors()[0]["loc"] == ("pod", "limits", "cpu")
    for fits in ({"cpu": "1500m", "limits": {"cpu": "1500m"}}, {"cpu": 4, "limits": {"cpu": "4000m"}}):
        ModelDeploymentSpec.model_validate({**MINIMAL, "pod": fits})


def test_identities_are_the_users_or_the_clusters() -> None:
    wish = {"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 1002, "supplementalGroups": [7]}
    for body in bodies({"securityContext": wish}):
        assert wish.items() <= body["securityContext"].items()
    for body in bodies({"securityContext": {"assignedByCluster": True}}):
        assert body["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        ours = [one for one in containers(body) if one["name"] != "fetch" or "cp" not in one.get("command", ())]
        assert all({"name": "USER", "value": "plimsoll"} in one["env"] for one in ours)


def test_only_what_fetches_goes_through_a_proxy_and_trusts_more() -> None:
    wish = {
        "proxy": {"https": "http://proxy.example:3128", "noProxy": "10.0.0.0/8"},
        "caBundle": {"configMap": "authorities"},
    }  # fmt: skip
    for body in bodies(wish):
        volumes = {one["name"]: one for one in body["volumes"]}
        assert volumes["authorities"]["configMap"]["items"] == [{"key": "ca-bundle.crt", "path": "ca.crt"}]
        for one in containers(body):
            environment = {entry["name"]: entry.get("value") for entry in one["env"]}
            reaches = one["name"] in ("fetch", "inspect")
            assert environment.get("HTTPS_PROXY") == ("http://proxy.example:3128" if reaches else None)
            assert environment.get("PLIMSOLL_CA_BUNDLE") == ("/etc/plimsoll/ca/ca.crt" if reaches else None)
            assert "HTTP_PROXY" not in environment
            if reaches:
                assert environment["NO_PROXY"] == "localhost,127.0.0.1,::1,.svc,.cluster.local,10.0.0.0/8"
    for body in bodies(wish, "pvc://models/a"):
        served = any(one["name"] == "server" for one in body["containers"])
        assert not served or "authorities" not in {one["name"] for one in body["volumes"]}


def test_a_proxy_is_let_through_the_network_policy() -> None:
    wish = {**MINIMAL, "model": {"source": "hf://org/name"}, "pod": {"proxy": {"https": "http://proxy.tools:3128"}}}
    spec = ModelDeploymentSpec.model_validate(wish)
    rules = build.network_policy(deployment(wish), spec, SETTINGS)["spec"]["egress"]
    assert any({"protocol": "TCP", "port": 3128} in rule.get("ports", ()) for rule in rules)
    assert "tools" in str(rules)


def test_placement_reaches_every_pod_and_affinity_to_pods_only_replicas() -> None:
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}
    nodes = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}
    ]}}  # fmt: skip
    apart = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    wish = {
        "architecture": "arm64", "runtimeClassName": "kata", "imagePullPolicy": "Always",
        "affinity": {"nodeAffinity": nodes, "podAntiAffinity": apart},
    }  # fmt: skip
    served, inspected, quantized = bodies(wish)
    for body in (served, inspected, quantized):
        assert body["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
        assert body["runtimeClassName"] == "kata"
        assert body["affinity"]["nodeAffinity"] == nodes
        assert all(one["imagePullPolicy"] == "Always" for one in body["containers"])
    assert served["affinity"] == wish["affinity"]
    assert set(inspected["affinity"]) == {"nodeAffinity"}


@pytest.mark.parametrize(
    ("affinity", "field"),
    [
        ({"nodeAfinity": {}}, ("pod", "affinity", "nodeAfinity")),
        ({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}, ("topologyKey",)),
        ({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "preference": {}}]}},
         ("weight",)),
    ],
)  # fmt: skip
def test_a_fault_in_an_affinity_is_named(affinity: Any, field: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        ModelDeploymentSpec.model_validate({**MINIMAL, "pod": {"affinity": affinity}})
    assert error.value.errors()[0]["loc"][-len(field) :] == field


def test_spreading_is_over_nodes_unless_something_else_is_wished() -> None:
    def spread(pod: Spec) -> list[Object]:
        found: list[Object] = replica_set({**MINIMAL, "pod": pod})["spec"]["template"]["spec"][
            "topologySpreadConstraints"
        ]
        return found

    [default] = spread({})
    assert list(default)[:3] == ["topologyKey", "maxSkew", "whenUnsatisfiable"]
    [zone] = spread({"topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]})
    selector = {key: value for key, value in default["labelSelector"]["matchLabels"].items() if "revision" not in key}
    assert zone["labelSelector"]["matchLabels"].items() >= selector.items()
    assert (zone["topologyKey"], zone["maxSkew"], zone["whenUnsatisfiable"]) == ("zone", 1, "DoNotSchedule")


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ('pods "a" is forbidden: failed quota: team: must specify limits.cpu for: server', "spec.pod.limits.cpu"),
        ("failed quota: q: must specify limits.cpu,limits.ephemeral-storage for: fetch,server",
         "spec.pod.limits.cpu and spec.pod.limits.ephemeralStorage"),
        ("exceeded quota: q, requested: requests.cpu=4, used: requests.cpu=1, limited: requests.cpu=4", "spec.pod.cpu"),
        ("exceeded quota: q, requested: limits.memory=9Gi,pods=1, used: limits.memory=1Gi,pods=3, limited: x",
         "spec.accelerator.memory"),
        ("exceeded quota: q, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4, limited: x",
         "spec.parallelism or spec.replicas"),
        ("maximum cpu usage per Container is 1, but limit is 2", "spec.pod.limits.cpu"),
        ("minimum memory usage per Container is 2Gi, but request is 1Gi", "spec.accelerator.memory"),
        ("cpu max limit to request ratio per Container is 2, but provided ratio is 10.000000", "spec.pod.limits.cpu"),
        ('Pod "a" is invalid: spec.containers[0].resources.requests: Invalid value: "1": must be less than or equal to '
         "cpu limit of 500m", "spec.pod.limits.cpu"),
    ],
)  # fmt: skip
def test_a_refusal_of_a_quota_names_the_field_that_helps(words: str, field: str) -> None:
    assert f"Set {field}" in with_help(words)
    assert with_help(with_help(words)) == with_help(words)


def test_other_refusals_stay_as_they_are() -> None:
    for words in ('admission webhook "policy" denied the request: no', 'serviceaccounts "x" not found'):
        assert with_help(words) == words


def test_unset_fields_leave_a_template_as_it_was() -> None:
    empty = {"limits": {}, "securityContext": {}, "proxy": {}, "topologySpreadConstraints": [], "affinity": None}
    found = replica_set({**MINIMAL, "pod": empty})["spec"]["template"]
    assert found == replica_set(MINIMAL)["spec"]["template"]
    # As version 0.1 rendered it.
    assert names.digest(found) == GOLDEN
