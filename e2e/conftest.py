"""Scenarios on a real cluster. KUBECONFIG names it; without one every scenario skips and says so.

PLIMSOLL_E2E_REQUIRED=1           a skip is a failure
PLIMSOLL_E2E_OPERATOR             `local` (default): a process of this machine, which must reach pod addresses; `chart`
PLIMSOLL_E2E_RUNTIME_IMAGE        of model pods; plimsoll.dev/runtime:dev
PLIMSOLL_E2E_OPERATOR_IMAGE       of the operator, with `chart`; plimsoll.dev/operator:dev
PLIMSOLL_E2E_NODE_HOST            where NodePorts answer; 127.0.0.1
PLIMSOLL_E2E_NODE_PORTS           which of them may be taken, FIRST-LAST; 31080-31099
PLIMSOLL_E2E_LEAVE=1              the cluster ends with this run: the last namespaces need not be awaited
PLIMSOLL_E2E_RESTART_API_SERVER   a command that ends the API server and brings it back
PLIMSOLL_E2E_OCI_SOURCE           an oci:// source with the demo model that nodes can pull
"""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e import volumes
from e2e.bare import deployment, proxy, recorded, start  # noqa: F401 - fixtures
from e2e.cluster import SOON, Cluster, NoClusterError, eventually
from e2e.deployments import CLAIM, MODEL_FILE, ModelDeployment
from e2e.operators import ROOT, ChartOperator, LocalOperator, Operator
from e2e.results import FOLDER, Result, table
from e2e.scene import Scene
from e2e.turns import alone_last, is_alone, turn
from plimsoll.cli import demo_model

RUNTIME_IMAGE = os.environ.get("PLIMSOLL_E2E_RUNTIME_IMAGE", "plimsoll.dev/runtime:dev")
OPERATOR_IMAGE = os.environ.get("PLIMSOLL_E2E_OPERATOR_IMAGE", "plimsoll.dev/operator:dev")
REQUIRED = os.environ.get("PLIMSOLL_E2E_REQUIRED") == "1"
CHART = os.environ.get("PLIMSOLL_E2E_OPERATOR", "local") == "chart"

_rows: list[dict[str, Any]] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes minutes; `.ci/run` leaves it out")
    config.addinivalue_line("markers", "cluster_wide: its operator serves every namespace, for only then it sees nodes")
    config.addinivalue_line("markers", "alone: acts on the whole cluster, so no other scenario runs meanwhile")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = alone_last(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    report = yield
    if REQUIRED and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where PLIMSOLL_E2E_REQUIRED=1 forbids it: {report.longrepr}"
    if report.when in ("setup", "call"):
        item.stash[_OUTCOME] = "passed" if report.passed else "failed" if report.failed else "skipped"
    if report.failed and report.when in ("setup", "call"):
        words = _dump(item)
        if words:
            report.sections.append(("the cluster", words[-12000:]))
    return report


_OUTCOME = pytest.StashKey[str]()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Where several workers run, they send their rows along with their reports."""
    if report.when == "teardown":
        _rows.extend(json.loads(str(row)) for kind, row in report.user_properties if kind == "row")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _rows:
        terminalreporter.section("scenarios")
        for line in table(_rows):
            terminalreporter.write_line(line)


def _dump(item: pytest.Item) -> str:
    """What somebody would look at first, kept in a file too: the namespace is gone when the report is read."""
    arguments = getattr(item, "funcargs", {})
    cluster, namespace = arguments.get("cluster"), arguments.get("namespace")
    if cluster is None or namespace is None:
        return ""
    parts = []
    for command in (
        "get mdep,qjob,replicasets,statefulsets,jobs,pods,services,endpointslices,pdb,pvc -o wide",
        "get mdep,qjob -o yaml",
        "describe pods",
        "get events --sort-by=.lastTimestamp",
    ):
        try:
            parts.append(f"$ kubectl {command}\n" + cluster.kubectl(*command.split(), "-n", namespace))
        except Exception as error:
            parts.append(f"$ kubectl {command}\n{error}")
    try:
        for pod in cluster.find("pods", namespace):
            name = pod["metadata"]["name"]
            logs = ("logs", name, "-n", namespace, "--all-containers", "--prefix", "--tail=60")
            parts.append(f"$ kubectl logs {name}\n" + cluster.kubectl(*logs))
    except Exception as error:
        parts.append(str(error))
    if (running := arguments.get("operator")) is not None:
        parts.append("operator's log\n" + "\n".join(running.log().splitlines()[-80:]))
    words = "\n\n".join(parts)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{_name(item)}.txt").write_text(words)
    return words


def _name(item: Any) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", item.name.removeprefix("test_")).strip("-")


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Cluster:
    """The cluster of KUBECONFIG, with our CRDs."""
    try:
        found = Cluster()
    except NoClusterError as error:
        pytest.skip(f"no cluster: {error}")
    crds = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    if crds:
        found.apply(*crds, server_side=True)
        names = [f"crd/{crd['metadata']['name']}" for crd in crds]
        found.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
    return found


@pytest.fixture(scope="session")
def runtime_image(cluster: Cluster) -> str:
    """The image of model pods; a node must have it, or be told by name where to pull it from."""
    if "PLIMSOLL_E2E_RUNTIME_IMAGE" not in os.environ and not cluster.has_image(RUNTIME_IMAGE):
        pytest.skip(f"no node has {RUNTIME_IMAGE}: build Dockerfile.runtime and load it (docs/testing.md)")
    return RUNTIME_IMAGE


@pytest.fixture(scope="session")
def operator_image(cluster: Cluster) -> str:
    """The image of the chart's operator, likewise."""
    if "PLIMSOLL_E2E_OPERATOR_IMAGE" not in os.environ and not cluster.has_image(OPERATOR_IMAGE):
        pytest.skip(f"no node has {OPERATOR_IMAGE}: build Dockerfile.operator and load it (docs/testing.md)")
    return OPERATOR_IMAGE


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The demo model, as `make test` knows it."""
    return demo_model.fetch(ROOT / ".cache" / "plimsoll")


@pytest.fixture(autouse=True)
def its_turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Scenarios that act on the whole cluster run alone, all others side by side."""
    with turn(FOLDER, is_alone(request.node)):
        yield


@pytest.fixture(scope="session")
def attic(cluster: Cluster) -> Iterator[dict[str, list[str]]]:
    """Namespaces on their way out and the volumes their claims held: they end while the next scenario begins."""
    leaving: dict[str, list[str]] = {}
    yield leaving
    if os.environ.get("PLIMSOLL_E2E_LEAVE") == "1":
        return
    for name, kept in leaving.items():
        cluster.kubectl("wait", "--for=delete", f"namespace/{name}", "--timeout=120s")
        volumes.hand_back(cluster, kept)


@pytest.fixture
def namespaces(
    cluster: Cluster, request: pytest.FixtureRequest, attic: dict[str, list[str]]
) -> Iterator[Callable[[], str]]:
    """Makes namespaces of the test's own that only take pods of the `restricted` Pod Security Standard."""
    for kept in attic.values():
        volumes.hand_back(cluster, kept)
    short = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:30].strip("-")
    standard = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    made: list[str] = []

    def make() -> str:
        name = f"e2e-{short}-{secrets.token_hex(2)}"
        meta = {"name": name, "labels": {**standard, "plimsoll.dev/e2e": "true"}}
        cluster.api("POST", "/api/v1/namespaces", {"metadata": meta})
        made.append(name)
        return name

    yield make
    for name in made:
        attic[name] = volumes.bound(cluster, name)
        # What makes pods, then pods without their drain, then the rest: they end while the next scenario begins.
        makers = "modeldeployments,quantizationjobs,statefulsets,replicasets,jobs"
        cluster.kubectl("delete", makers, "--all", "-n", name, "--timeout=60s")
        cluster.kubectl("delete", "pods", "--all", "-n", name, "--grace-period=1", "--wait=false")
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(namespaces: Callable[[], str]) -> str:
    """The test's namespace."""
    return namespaces()


@pytest.fixture
def result(request: pytest.FixtureRequest) -> Iterator[Result]:
    """Figures of this scenario."""
    found = Result(_name(request.node))
    yield found
    row = found.write(request.node.stash.get(_OUTCOME, "unknown"))
    request.node.user_properties.append(("row", json.dumps(row, default=str)))


@pytest.fixture
def settings(namespace: str, runtime_image: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The operator's configuration: it serves the test's namespace alone, unless the test has to do with nodes."""
    return {
        "runtimeImage": runtime_image,
        # No node has a GPU: what pods on the advertised ones do is shown with the image there is.
        "cudaRuntimeImage": runtime_image,
        "allowedEndpoints": ["http://*", "https://*"],
        "operatorNamespace": namespace,
        "namespaces": [] if request.node.get_closest_marker("cluster_wide") else [namespace],
    }


@pytest.fixture
def operator(
    cluster: Cluster, namespace: str, settings: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Operator]:
    """A running operator, which the test may kill and start again."""
    found: Operator
    if CHART:
        found = ChartOperator(cluster, namespace, settings, request.getfixturevalue("operator_image"))
    else:
        found = LocalOperator(tmp_path, settings)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def models(cluster: Cluster, namespace: str, runtime_image: str, model_file: Path) -> str:
    """Name of a claim that holds the demo model."""
    volumes.claim(cluster, namespace, CLAIM)
    volumes.put(cluster, namespace, CLAIM, [(model_file, MODEL_FILE)], runtime_image, alone=True)
    return CLAIM


@pytest.fixture
def bare(cluster: Cluster, namespace: str, operator: Operator, result: Result) -> Scene:
    """A scene without a model."""
    first, last = os.environ.get("PLIMSOLL_E2E_NODE_PORTS", "31080-31099").split("-")
    return Scene(cluster, namespace, operator, result, list(range(int(first), int(last) + 1)))


@pytest.fixture
def scene(bare: Scene, models: str) -> Scene:
    """A scene with the demo model in claim `models`."""
    return bare


@pytest.fixture
def serving(scene: Scene) -> Callable[..., tuple[ModelDeployment, str]]:
    """Applies a deployment, waits until it is Ready, and returns it with its NodePort's URL."""

    def serve(name: str = "smollm2", **spec: Any) -> tuple[ModelDeployment, str]:
        deployed = scene.deploy(name, **spec)
        deployed.ready()
        url = scene.url(deployed)
        wanted = spec.get("replicas", 1)
        eventually(lambda: deployed.routable() == wanted, SOON, f"{wanted} pods behind the Service")
        return deployed, url

    return serve
