"""The chart on a cluster: strict validation, install, upgrade to a next version, rights as the API server sees them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import SOON, Cluster, eventually
from e2e.operators import ROOT

#: One release, whose roles and policies are of the whole cluster.
pytestmark = pytest.mark.alone
CHART = ROOT / "charts" / "plimsoll"
CRD = "modeldeployments.plimsoll.dev"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RELEASE = "chart-e2e"
OPERATOR = f"{RELEASE}-plimsoll-operator"
OURS = ("app.kubernetes.io/managed-by", "meta.helm.sh/release-name", "meta.helm.sh/release-namespace")


def helm(*arguments: str, values: dict[str, Any] | None = None) -> str:
    given = ("--values", "-") if values is not None else ()
    done = subprocess.run(
        ["helm", *arguments, *given], input=json.dumps(values or {}), capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@pytest.fixture(autouse=True)
def _helm_is_there() -> None:
    if shutil.which("helm") is None:
        pytest.skip("helm is not in PATH")


@pytest.fixture
def release(cluster: Cluster, namespace: str) -> Iterator[str]:
    """The namespace to install into; afterwards the release is gone and the CRD is as `crds/` has it, nobody's."""
    yield namespace
    helm("uninstall", RELEASE, "-n", namespace, "--ignore-not-found", "--wait")
    nobody = {
        "metadata": {
            part: dict.fromkeys((*OURS, "bumped", "helm.sh/resource-policy")) for part in ("labels", "annotations")
        }
    }
    cluster.api("PATCH", f"{CRDS}/{CRD}", nobody, kind="merge-patch")
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        cluster.apply(yaml.safe_load(path.read_text()), server_side=True)


@pytest.fixture
def values(namespace: str) -> dict[str, Any]:
    """Serves the test's own namespace, so that it is nobody's rival, and starts no pod unless a test wants one."""
    return {
        "replicas": 0,
        "image": {"tag": "dev"},
        "runtime": {"image": {"tag": "dev"}},
        "settings": {"namespaces": [namespace]},
    }


def install(namespace: str, values: dict[str, Any], chart: Path = CHART, *more: str) -> None:
    helm("upgrade", "--install", RELEASE, str(chart), "-n", namespace, "--take-ownership", *more, values=values)


def next_version(folder: Path) -> Path:
    """The chart as it might be released next: another version, and a CRD that has changed."""
    chart = folder / "plimsoll"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": "99.0.0"}))
    for path in (chart / "files" / "crds").glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())
        crd["metadata"].setdefault("annotations", {})["bumped"] = "99.0.0"
        path.write_text(yaml.safe_dump(crd))
    return chart


def may(
    cluster: Cluster, namespace: str, who: str, verb: str, what: str, name: str = "", *, where: str | None = None
) -> bool:
    """Whether the API server lets a service account of `namespace` do this, there or `where` ("": everywhere).
    `what` is GROUP/RESOURCE[/SUBRESOURCE]."""
    group, resource, *sub = what.split("/")
    attributes = {
        "namespace": namespace if where is None else where,
        "verb": verb,
        "group": group,
        "resource": resource,
        "name": name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{who}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            "resourceAttributes": {**attributes, "subresource": sub[0] if sub else ""},
        },
    }
    return bool(cluster.api("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"])


@pytest.mark.parametrize("everywhere", [True, False], ids=["cluster", "namespaces"])
def test_the_api_server_takes_every_object_strictly(cluster: Cluster, namespace: str, everywhere: bool) -> None:
    version = cluster.version.removeprefix("v")
    values = {"dashboard": {"enabled": True}, "settings": {"namespaces": [] if everywhere else [namespace]}}
    rendered = helm("template", RELEASE, str(CHART), "-n", namespace, "--kube-version", version, values=values)
    cluster.kubectl(
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "--server-side",
        "--force-conflicts",
        "-f",
        "-",
        stdin=rendered,
    )


def test_an_upgrade_brings_its_crds_along_and_an_uninstall_leaves_them(
    cluster: Cluster, release: str, values: dict[str, Any], tmp_path: Path
) -> None:
    install(release, values)
    uid = cluster.api("GET", f"{CRDS}/{CRD}")["metadata"]["uid"]
    install(release, values, next_version(tmp_path))
    crd = cluster.api("GET", f"{CRDS}/{CRD}")
    assert crd["metadata"]["annotations"]["bumped"] == "99.0.0"
    assert json.loads(helm("list", "-n", release, "-o", "json"))[0]["chart"] == "plimsoll-99.0.0"
    helm("uninstall", RELEASE, "-n", release, "--wait")
    assert cluster.api("GET", f"{CRDS}/{CRD}")["metadata"]["uid"] == uid
    assert (
        cluster.kubectl("get", "all,role,rolebinding", "-n", release, "-l", "app.kubernetes.io/managed-by=Helm") == ""
    )


def test_another_version_alone_leaves_the_operators_pods(
    cluster: Cluster, release: str, values: dict[str, Any], tmp_path: Path
) -> None:
    install(release, values)
    path = f"/apis/apps/v1/namespaces/{release}/deployments/{OPERATOR}"
    before = cluster.api("GET", path)["spec"]["template"]
    install(release, values, next_version(tmp_path))
    assert cluster.api("GET", path)["spec"]["template"] == before


def test_the_operator_has_the_rights_it_needs_and_reads_no_secrets(
    cluster: Cluster, release: str, values: dict[str, Any]
) -> None:
    install(release, values)
    needs = (
        ("watch", "plimsoll.dev/modeldeployments"), ("patch", "plimsoll.dev/modeldeployments/status"),
        ("create", "apps/replicasets"), ("create", "apps/statefulsets"), ("create", "/secrets"), ("delete", "/pods"),
        ("update", "coordination.k8s.io/leases", OPERATOR),
    )  # fmt: skip
    must_not = (
        ("get", "/secrets"), ("list", "/secrets"), ("watch", "/secrets"), ("patch", "/secrets"), ("delete", "/secrets"),
        ("patch", "plimsoll.dev/modeldeployments"), ("create", "/pods/exec"),
        ("delete", "/persistentvolumeclaims"), ("create", "rbac.authorization.k8s.io/roles"), ("list", "/nodes"),
        ("update", "coordination.k8s.io/leases", "another"), ("delete", "/services"),
    )  # fmt: skip
    for need in needs:
        eventually(lambda need=need: may(cluster, release, OPERATOR, *need), SOON, f"the operator may {need}")
    assert [one for one in must_not if may(cluster, release, OPERATOR, *one)] == []


def test_an_operator_for_the_whole_cluster_sees_nodes_and_every_namespace(
    cluster: Cluster, release: str, values: dict[str, Any]
) -> None:
    install(release, {**values, "settings": {"namespaces": []}})
    for need in (
        ("watch", "/nodes"),
        ("list", "/pods"),
        ("watch", "plimsoll.dev/modeldeployments"),
        ("create", "/pods"),
    ):
        everywhere = eventually(lambda need=need: may(cluster, release, OPERATOR, *need, where=""), SOON, f"may {need}")
        assert everywhere
    assert not may(cluster, release, OPERATOR, "get", "/secrets", where="")
    assert not may(cluster, release, OPERATOR, "update", "coordination.k8s.io/leases", OPERATOR, where="default")
    # What its role allows, the admission policy narrows.
    eventually(
        lambda: "writes nothing into" in written(cluster, release, record("kube-system")), SOON, "the policy holds"
    )
    assert "created" in written(cluster, release, record(release))
    assert "its labels" in written(cluster, release, record(release, labels={}))
    assert "owns" in written(cluster, release, record(release, name="settings"))
    pod = {"automountServiceAccountToken": False, "containers": [{"name": "a", "image": "a"}]}
    # Where no label asks the API server for the restricted standard, the policy still does.
    made = {**record("default"), "kind": "Pod"}
    assert "of the operator's pods are restricted" in written(cluster, release, {**made, "spec": pod})
    assert "of the node" in written(cluster, release, {**made, "spec": pod | {"hostPID": True}})


def record(namespace: str, name: str = "plimsoll-source-1", labels: Any = None) -> dict[str, Any]:
    """An object such as the operator makes: what is known of a source."""
    marks = {"app.kubernetes.io/managed-by": "plimsoll", "plimsoll.dev/source": "1"} if labels is None else labels
    about = {"name": name, "namespace": namespace, "labels": marks}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about}


def written(cluster: Cluster, namespace: str, body: dict[str, Any]) -> str:
    """What the API server says when the operator's account makes this object; nothing is stored."""
    account = f"system:serviceaccount:{namespace}:{OPERATOR}"
    command = ["kubectl", "create", "-f", "-", "--dry-run=server", f"--as={account}"]
    done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_people_with_edit_may_write_deployments_and_people_with_view_may_read_them(
    cluster: Cluster, release: str, values: dict[str, Any]
) -> None:
    install(release, {**values, "settings": {"namespaces": []}})
    for who in ("view", "edit"):
        cluster.kubectl("create", "serviceaccount", who, "-n", release)
        account = f"--serviceaccount={release}:{who}"
        cluster.kubectl("create", "rolebinding", who, f"--clusterrole={who}", account, "-n", release)
    mdep = "plimsoll.dev/modeldeployments"
    eventually(lambda: may(cluster, release, "edit", "create", mdep), SOON, "edit may create")
    eventually(lambda: may(cluster, release, "view", "watch", mdep), SOON, "view may watch")
    assert may(cluster, release, "edit", "patch", f"{mdep}/scale")
    assert not may(cluster, release, "edit", "patch", f"{mdep}/status")
    assert not may(cluster, release, "view", "delete", mdep)


def test_the_charts_own_test_passes(
    cluster: Cluster, release: str, values: dict[str, Any], operator_image: str
) -> None:
    named = dict(zip(("repository", "tag"), operator_image.rsplit(":", 1), strict=True))
    install(release, {**values, "image": named, "replicas": 2}, CHART, "--wait", "--timeout", "120s")
    said = helm("test", RELEASE, "-n", release, "--timeout", "120s")
    assert "Succeeded" in said
    held = cluster.api("GET", f"/apis/coordination.k8s.io/v1/namespaces/{release}/leases/{OPERATOR}")
    assert held["spec"]["holderIdentity"].startswith(OPERATOR)
