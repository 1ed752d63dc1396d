"""What the API server makes of the CRD: rules in CEL, defaults, explanations, columns, the two subresources.

Nothing is served here and hardly anything stored: most requests are dry runs.
"""

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2e.cluster import PATHS, Cluster, RefusedError
from e2e.operators import ROOT
from plimsoll.api.errors import SpecError
from plimsoll.api.manifest import parse_manifest
from tests.support.gitops import kstatus
from tests.support.manifests import ENDPOINTS, ON_CPU, ON_GPU, SOURCES, Wrong, manifest, wrong_manifests

PLACE = PATHS["modeldeployments"]
DRY = PLACE.format("default") + "?dryRun=All&fieldValidation="
EXAMPLES = [
    path for path in sorted((ROOT / "examples").rglob("*.yaml")) if "\nkind: ModelDeployment\n" in path.read_text()
]


@pytest.fixture(scope="module")
def here(cluster: Cluster) -> Iterator[str]:
    """A namespace for what has to be stored."""
    name = f"plimsoll-crd-{uuid.uuid4().hex[:6]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def stored(cluster: Cluster, what: dict[str, Any], validation: str = "Strict") -> dict[str, Any]:
    """The object as it would be stored. Raises RefusedError with the API server's message."""
    try:
        return cluster.api("POST", DRY + validation, what)
    except RefusedError as refused:
        raise RefusedError(refused.status, json.loads(refused.words)["message"]) from None


def cause(wrong: Wrong, cluster: Cluster) -> tuple[str, str]:
    """Who refuses it, and with what words."""
    try:
        stored(cluster, wrong.manifest)
    except RefusedError as refused:
        return f"API server ({refused.status})", refused.words
    try:
        parse_manifest(wrong.manifest)
    except SpecError as error:
        return "Accepted=False", str(error)
    return "nobody", ""


def test_each_wrong_manifest_is_refused_with_its_field(cluster: Cluster) -> None:
    """Each has one fault. What the API server let through, the operator would answer with Accepted=False."""
    faults = list(wrong_manifests())
    assert len(faults) >= 200
    seen = [(wrong, *cause(wrong, cluster)) for wrong in faults]
    assert [(wrong.what, who, words[:300]) for wrong, who, words in seen if wrong.field not in words] == []
    # Everything that is static is refused at the door.
    assert [wrong.what for wrong, who, _ in seen if who not in ("API server (400)", "API server (422)")] == []


def test_the_words_of_a_rule_name_the_fix(cluster: Cluster) -> None:
    words = {wrong.what: cause(wrong, cluster)[1] for wrong in wrong_manifests()}
    assert "write pvc://CLAIM/PATH" in words["a path of one machine"]
    assert "oci://IMAGE@sha256:DIGEST" in words["an image by tag"]
    assert "Remove it" in words["a claim in a claim"]
    assert "accelerator.memory is the pod's memory" in words["the host's memory on a CPU"]
    assert "up to 40 lower-case letters" in words["name 1demo"]
    assert "must be a duration such as 120s" in words["requestTimeout '25h'"]


@pytest.mark.parametrize("spec", [ON_CPU, ON_GPU], ids=["cpu", "gpu"])
def test_every_field_set_right_is_taken(cluster: Cluster, spec: dict[str, Any]) -> None:
    found = stored(cluster, manifest(spec))["spec"]
    assert all(
        found[part].items() >= spec[part].items() for part in spec if isinstance(spec[part], dict) and part != "pod"
    )


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source_is_taken(cluster: Cluster, source: str) -> None:
    stored(cluster, manifest({"model": {"source": source}, "accelerator": {"resource": "cpu"}}))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_form_of_endpoint_is_taken(cluster: Cluster, endpoint: str) -> None:
    model = {"source": "s3://bucket/a", "endpoint": endpoint}
    stored(cluster, manifest({"model": model, "accelerator": {"resource": "cpu"}}))


#: Pieces of which some are right and some are wrong; what makes the difference is which come together.
PIECES = {
    "source": [*SOURCES, "file://a", "hf://a", "pvc://a/..", "s3://B", "oci://a@sha256:0"],
    "endpoint": [None, None, *ENDPOINTS, "https://a@b", "a"],
    "credentialsSecret": [None, None, "s", "S"],
    "cacheClaim": [None, None, None, "c", "c/d"],
    "memory": [None, "1Gi", "1e9", 5, "0.5", "0", "1E", "1m", "-1", "9999Ti", "+1Gi", ".5Gi", "1.Gi", "1e-3"],
    "podMemory": [None, None, None, "1Gi"],
    "resource": ["cpu", "nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/gpu.shared", "amd.com/gpu", "gpu"],
    "timeout": ["1s", "1m30s", "24h", "24h1s", "0.001s", "0.0001s", "1.5m", "90m", "1h1h", "1s ", "1ms", "86400.5s"],
    "tensor": [None, "auto", 1, 2, 3, 4],
    "nodes": [None, None, 1, 2, 65],
    "topologyKey": [None, None, None, "rack", "example.com/rack", "a b"],
    "exclusiveTopology": [None, None, False, True],
    "label": [None, None, "a", "a.b_c-d", "-a", "a" * 63, "a" * 64, "é", ""],
}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in PIECES.items()}))
def test_the_api_server_and_the_types_give_the_same_verdict(cluster: Cluster, piece: dict[str, Any]) -> None:
    def some(**fields: Any) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if value is not None}

    model = some(**{name: piece[name] for name in ("source", "endpoint", "credentialsSecret", "cacheClaim")})
    labels = None if piece["label"] is None else {"key": piece["label"]}
    spec = {
        "model": model,
        "accelerator": some(resource=piece["resource"], memory=piece["memory"]),
        "serving": {"requestTimeout": piece["timeout"]},
        "parallelism": some(**{name: piece[name] for name in ("tensor", "nodes", "topologyKey", "exclusiveTopology")}),
        "pod": some(memory=piece["podMemory"], labels=labels),
    }
    verdicts = {}
    for who, ask in (("server", lambda whole: stored(cluster, whole)), ("types", parse_manifest)):
        try:
            ask(manifest(spec))
            verdicts[who] = "taken"
        except (RefusedError, SpecError) as error:
            verdicts[who] = str(error)
    if piece["source"].startswith("file://"):
        assert verdicts["server"] != "taken"
    else:
        assert (verdicts["server"] == "taken") == (verdicts["types"] == "taken"), verdicts


def test_defaults_appear_in_what_is_stored(cluster: Cluster) -> None:
    spec = stored(cluster, manifest({"model": {"source": "pvc://a"}, "accelerator": {"resource": "cpu"}}))["spec"]
    assert spec["kvCache"] == {"ratio": 0.8, "precision": "auto", "blockSize": 64, "prefixCaching": True}
    assert spec["rollout"] == {"strategy": "Auto", "drainTimeout": "2m", "progressDeadline": "10m"}
    assert (spec["replicas"], spec["precision"], spec["parallelism"]["tensor"]) == (1, "auto", "auto")
    assert spec["serving"]["requestTimeout"] == "10m"
    assert "context" not in spec
    assert spec["pod"] == {"imagePullPolicy": "IfNotPresent", "securityContext": {"assignedByCluster": False}}


def test_kubectl_refuses_an_unknown_field_and_without_validation_it_is_dropped(cluster: Cluster) -> None:
    typo = manifest(ON_CPU)
    typo["spec"]["kvCache"]["precison"] = "int8"
    text = yaml.safe_dump(typo)
    apply = ("apply", "--dry-run=server", "-o", "yaml", "-f", "-")
    with pytest.raises(RefusedError, match=r'unknown field "spec\.kvCache\.precison"'):
        cluster.kubectl(*apply, stdin=text)
    kept = yaml.safe_load(cluster.kubectl(*apply, "--validate=ignore", stdin=text))
    assert "precison" not in kept["spec"]["kvCache"]
    warned = subprocess.run(
        ["kubectl", *apply, "--validate=warn"], input=text, capture_output=True, text=True, timeout=60
    )
    assert 'unknown field "spec.kvCache.precison"' in warned.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_every_example_is_taken(cluster: Cluster, path: Any) -> None:
    """Those of one machine are refused with the way to a cluster."""
    documents = [d for d in yaml.safe_load_all(path.read_text()) if d and d["kind"] == "ModelDeployment"]
    assert documents
    for document in documents:
        document["metadata"].pop("namespace", None)
        if document["spec"]["model"].get("source", "").startswith("file://"):
            with pytest.raises(RefusedError, match="in a cluster put the files on a claim"):
                stored(cluster, document)
        else:
            stored(cluster, document)


def test_kubectl_explain_teaches(cluster: Cluster) -> None:
    cache = cluster.kubectl("explain", "mdep.spec.kvCache")
    assert re.search(r"what is left of the line after\s+context, weights and workspace", cache)
    assert "Default: 0.8." in cache
    every = cluster.kubectl("explain", "mdep", "--recursive")
    assert "progressDeadline" in every
    assert "apiKeysFile" not in every
    assert "Surge starts a new pod before an old one goes" in " ".join(
        cluster.kubectl("explain", "mdep.spec.rollout.strategy").split()
    )


def test_columns_short_name_category_and_both_subresources(cluster: Cluster, here: str) -> None:
    cluster.kubectl(
        "create", "-n", here, "-f", "-", stdin=yaml.safe_dump(manifest(ON_CPU) | {"status": {"phase": "Ready"}})
    )
    created = cluster.get("modeldeployments", here, "demo")
    assert created is not None
    assert created["status"] == {"observedGeneration": 0}
    assert kstatus(created["metadata"]["generation"], created["status"]) == "InProgress"
    since = created["metadata"]["creationTimestamp"]
    condition = {
        "type": "Ready", "status": "False", "reason": "NotReady", "message": "pod demo-1 is loading",
        "lastTransitionTime": since, "observedGeneration": 1,
    }  # fmt: skip
    status = {
        "phase": "Loading", "message": "pod demo-1 is loading", "endpoint": "http://demo", "replicas": 2,
        "ready": "1/2",
        "selector": "plimsoll.dev/deployment=demo", "load": {"summary": "3 running"}, "conditions": [condition],
    }  # fmt: skip
    path = f"{PLACE.format(here)}/demo"
    cluster.api("PATCH", f"{path}/status", {"status": status}, kind="merge-patch")
    head, row = cluster.kubectl("get", "mdep", "-n", here).splitlines()
    assert head.split() == ["NAME", "READY", "PHASE", "SINCE", "LOAD", "ENDPOINT", "AGE", "MESSAGE"]
    assert re.match(r"demo +1/2 +Loading +\d+s +3 running +http://demo +\d+s +pod demo-1 is loading", row)
    assert "hf://org/name@main" in cluster.kubectl("get", "plimsoll", "-n", here, "-o", "wide")
    scale = cluster.api("GET", f"{path}/scale")
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    assert scale["status"]["selector"] == "plimsoll.dev/deployment=demo"
    cluster.kubectl("scale", "mdep/demo", "--replicas=5", "-n", here)
    assert cluster.get("modeldeployments", here, "demo")["spec"]["replicas"] == 5
    with pytest.raises(RefusedError, match=r"spec\.replicas"):
        cluster.kubectl("scale", "mdep/demo", "--replicas=1001", "-n", here)
    with pytest.raises(RefusedError, match=r"status\.phase"):
        cluster.api("PATCH", f"{path}/status", {"status": {"phase": "Dreaming"}}, kind="merge-patch")


def test_kubeconform_passes_the_crds_every_example_and_what_the_chart_renders(cluster: Cluster, tmp_path: Path) -> None:
    """Against the schemas that this API server publishes, so that nothing is fetched from elsewhere."""
    for tool in ("kubeconform", "helm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not in PATH")
    definitions = cluster.api("GET", "/openapi/v2")["definitions"]
    # OpenAPI 2 has no words for it and calls it text of a format.
    definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = {"type": ["string", "integer"]}
    (tmp_path / "definitions.json").write_text(json.dumps({"definitions": definitions}))
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            group = f"{kind['group'].partition('.')[0]}-" if kind["group"] else ""
            file = tmp_path / f"{kind['kind'].lower()}-{group}{kind['version']}.json"
            file.write_text(json.dumps({"$ref": f"definitions.json#/definitions/{name}"}))
    place = str(tmp_path / "{{.ResourceKind}}{{.KindSuffix}}.json")
    version = ("--kube-version", cluster.version.removeprefix("v"))
    for name, values in (("cluster", {}), ("namespaces", {"settings": {"namespaces": ["one", "two"]}})):
        command = ["helm", "template", "x", ROOT / "charts" / "plimsoll", *version, "--values", "-"]
        given = json.dumps({"dashboard": {"enabled": True}, **values}).encode()
        (tmp_path / f"chart-{name}.yaml").write_bytes(subprocess.check_output(command, input=given, timeout=60))
    files = [str(path) for path in (*sorted((ROOT / "crds").glob("*.yaml")), *EXAMPLES, *tmp_path.glob("chart-*.yaml"))]
    command = ["kubeconform", "-strict", "-summary", "-schema-location", place, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Invalid: 0, Errors: 0, Skipped: 0", done.stdout)


def test_nothing_speaks_against_the_crd(cluster: Cluster) -> None:
    crd = cluster.api("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modeldeployments.plimsoll.dev")
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions.get("Established") == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
