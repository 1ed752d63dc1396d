"""What the chart sends to a cluster, over the corners of its values."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from plimsoll import __version__
from plimsoll.operator.settings import Settings, load_settings

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]
MONITORS = ("monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PodMonitor")
DIGEST = "sha256:" + "0123456789abcdef" * 4


def one(objects: Objects, kind: str, name: str | None = None) -> dict[str, Any]:
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{kind} {name}: {[o['metadata']['name'] for o in found]}"
    return found[0]


def kinds(objects: Objects) -> set[str]:
    return {o["kind"] for o in objects}


def rules(objects: Objects) -> list[dict[str, Any]]:
    return [rule for o in objects if o["kind"] in ("Role", "ClusterRole") for rule in o["rules"]]


def configuration(objects: Objects, tmp_path: Path, name: str = "plimsoll-operator") -> Settings:
    path = tmp_path / "operator.yaml"
    path.write_text(one(objects, "ConfigMap", name)["data"]["operator.yaml"])
    return load_settings(path)


CORNERS: tuple[dict[str, Any], ...] = tuple(
    {**a, **b, **c}
    for a, b, c in itertools.product(
        (
            {},
            {"settings": {"namespaces": ["team-a", "team-b"]}},
            {"settings": {"namespaces": ["plimsoll-system"], "allowedSources": [], "monitoringNamespaces": []}},
        ),
        (
            {},
            {"replicas": 1, "crds": {"install": False}, "networkPolicy": {"enabled": False}, "resources": None},
            {
                "rbac": {"create": False},
                "serviceAccount": {"create": False, "name": "given"},
                "imagePullSecrets": ["pull"],
                "podLabels": {"app.kubernetes.io/name": "not-this-one", "team": "a"},
                "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "affinity": {"podAntiAffinity": {}},
                "priorityClassName": "system-cluster-critical",
            },
        ),
        (
            {},
            {
                "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Models"}},
                "metrics": {"podMonitor": True, "serviceMonitor": False, "labels": {"release": "prometheus"}},
                "image": {"digest": DIGEST, "tag": "9.9.9"},
            },
        ),
    )
)


@pytest.mark.parametrize("values", CORNERS, ids=range(len(CORNERS)))
def test_every_corner_of_the_values_renders_whole_objects(render: Render, values: dict[str, Any]) -> None:
    objects = render(values, apis=MONITORS)
    names = [(o["apiVersion"], o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))
    deployment = one(objects, "Deployment")
    pod = deployment["spec"]["template"]
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    assert all(isinstance(value, str) for o in objects for value in o["metadata"].get("labels", {}).values())


@pytest.mark.parametrize("values", CORNERS, ids=range(len(CORNERS)))
def test_no_role_has_a_wildcard_or_reads_a_secret(render: Render, values: dict[str, Any]) -> None:
    for rule in rules(render(values)):
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert "secrets" not in rule["resources"] or (rule["resources"], rule["verbs"]) == (["secrets"], ["create"])
        assert not {"pods/exec", "pods/attach", "pods/portforward"} & set(rule["resources"])
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_the_operator_may_not_change_what_a_user_wrote(render: Render) -> None:
    mine = one(render(), "ClusterRole", "plimsoll-operator")["rules"]
    verbs = {r: set(rule["verbs"]) for rule in mine for r in rule["resources"]}
    assert verbs["modeldeployments"] == {"get", "list", "watch"}
    assert verbs["modeldeployments/status"] == {"patch"}
    assert verbs["quantizationjobs"] == {"get", "list", "watch"}
    assert verbs["quantizationjobs/status"] == {"patch"}
    assert verbs["persistentvolumeclaims"] == {"get"}
    assert verbs["nodes"] <= {"get", "list", "watch"}


def test_some_namespaces_only_grants_nothing_on_the_cluster(render: Render) -> None:
    objects = render({"settings": {"namespaces": ["team-a", "team-b"]}})
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds(objects)
    roles = {
        o["metadata"]["namespace"] for o in objects if o["kind"] == "Role" and o["metadata"]["name"][-5:] != "lease"
    }
    assert roles == {"team-a", "team-b"}
    everywhere = one(render(), "ClusterRole", "plimsoll-operator")["rules"]
    role = next(o for o in objects if o["kind"] == "Role" and o["metadata"]["namespace"] == "team-a")
    assert [rule for rule in everywhere if rule["resources"] != ["nodes"]] == role["rules"]


def test_users_roles_reach_view_and_edit(render: Render) -> None:
    objects = render()
    view, edit = (one(objects, "ClusterRole", f"plimsoll-{name}") for name in ("view", "edit"))
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}


def test_the_operators_pod_is_restricted_and_everything_it_mounts_is_there(render: Render) -> None:
    pod = one(render(), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}


def test_the_operator_reads_its_settings_from_what_the_chart_mounts(render: Render, tmp_path: Path) -> None:
    settings = configuration(render({"settings": {"workers": 3}}), tmp_path)
    assert settings.workers == 3
    assert settings.runtime_image == f"plimsoll.dev/runtime:{__version__}"
    assert settings.operator_namespace == "plimsoll-system"
    objects = render()
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    (given,) = [e["value"] for e in pod["containers"][0]["env"] if e["name"] == "PLIMSOLL_OPERATOR_CONFIG"]
    mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
    (volume,) = [v for v in pod["volumes"] if v["name"] == mounts[str(Path(given).parent)]]
    assert Path(given).name in one(objects, "ConfigMap", volume["configMap"]["name"])["data"]


def test_defaults_of_the_chart_are_the_operators_own(render: Render, tmp_path: Path) -> None:
    ours = {"runtime_image", "operator_namespace", "lease_name"}
    assert configuration(render(), tmp_path).model_dump(exclude=ours) == Settings().model_dump(exclude=ours)


def test_every_setting_of_the_operator_can_be_given(render: Render, tmp_path: Path) -> None:
    settings = configuration(
        render(
            {
                "settings": {
                    "namespaces": ["a"],
                    "allowedSources": ["pvc://*"],
                    "allowedEndpoints": [],
                    "allowedProxies": ["http://proxy:*"],
                    "allowedServiceAccounts": ["a/models"],
                    "clientNamespaces": ["b"],
                    "monitoringNamespaces": ["c"],
                    "imageVolumes": "never",
                    "workers": 2,
                    "healthPort": 9090,
                },
                "runtime": {
                    "image": {"repository": "r/run", "digest": DIGEST},
                    "cudaImage": {"repository": "r/cuda"},
                    "imagePullSecrets": ["s"],
                },
                "metrics": {"labels": {"release": "kps"}},
            },
            name="other",
            namespace="ns",
        ),
        tmp_path,
        "other-plimsoll-operator",
    )
    default = Settings().model_dump()
    assert [name for name, value in settings.model_dump().items() if value == default[name]] == []
    assert settings.runtime_image == f"r/run@{DIGEST}"
    assert settings.cuda_runtime_image == f"r/cuda:{__version__}-cuda"


def test_settings_that_change_restart_the_operator_and_a_release_that_does_not_leaves_it(render: Render) -> None:
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        return dict(one(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"])

    assert annotations({}) == annotations({"replicas": 1})
    assert annotations({}) != annotations({"settings": {"workers": 3}})


def test_the_lease_is_the_one_the_operator_takes(render: Render, tmp_path: Path) -> None:
    objects = render(name="here")
    (named,) = [r["resourceNames"] for r in rules(objects) if "resourceNames" in r]
    assert named == [configuration(objects, tmp_path, "here-plimsoll-operator").lease_name]


def test_a_digest_wins_over_a_tag(render: Render) -> None:
    pod = one(render({"image": {"digest": DIGEST, "tag": "x"}}), "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"plimsoll.dev/operator@{DIGEST}"


def test_monitors_are_there_only_where_their_api_is(render: Render) -> None:
    values = {"metrics": {"serviceMonitor": True, "podMonitor": True}}
    assert not {"ServiceMonitor", "PodMonitor"} & kinds(render(values))
    assert {"ServiceMonitor", "PodMonitor"} <= kinds(render(values, apis=MONITORS))


def test_crds_come_with_the_chart_and_stay_when_it_goes(render: Render, repository: Path) -> None:
    generated = [yaml.safe_load(path.read_text()) for path in sorted((repository / "crds").glob("*.yaml"))]
    rendered = [o for o in render() if o["kind"] == "CustomResourceDefinition"]
    assert rendered
    for crd in rendered:
        assert crd["metadata"]["annotations"].pop("helm.sh/resource-policy") == "keep"
        if not crd["metadata"]["annotations"]:
            del crd["metadata"]["annotations"]
    assert rendered == generated


def test_the_charts_crds_are_the_generated_ones(repository: Path, chart: Path) -> None:
    generated = {path.name: path.read_bytes() for path in (repository / "crds").glob("*.yaml")}
    assert generated
    assert {path.name: path.read_bytes() for path in (chart / "files" / "crds").glob("*.yaml")} == generated


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"replica": 2}, "replica"),
    ({"replicas": -1}, "/replicas"),
    ({"image": {"digest": "sha256:short"}}, "/image/digest"),
    ({"image": {"repository": ""}}, "/image/repository"),
    ({"image": {"repository": "a@sha256:b"}}, "/image/repository"),
    ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
    ({"imagePullSecrets": [{"name": "x"}]}, "/imagePullSecrets/0"),
    ({"settings": {"namespaces": "default"}}, "/settings/namespaces"),
    ({"settings": {"namespaces": ["Upper"]}}, "/settings/namespaces/0"),
    ({"settings": {"allowedSources": ["*"]}}, "/settings/allowedSources/0"),
    ({"settings": {"allowedServiceAccounts": ["models"]}}, "/settings/allowedServiceAccounts/0"),
    ({"settings": {"workers": 0}}, "/settings/workers"),
    ({"settings": {"healthPort": 80}}, "/settings/healthPort"),
    ({"settings": {"imageVolumes": "always"}}, "/settings/imageVolumes"),
    ({"settings": {"leaseName": "x"}}, "leaseName"),
    ({"networkPolicy": {"apiServerPorts": []}}, "/networkPolicy/apiServerPorts"),
    ({"metrics": {"interval": "often"}}, "/metrics/interval"),
    ({"resources": {"claims": []}}, "claims"),
    ({"podLabels": {"a": 1}}, "/podLabels/a"),
    ({"crds": {"install": "yes"}}, "/crds/install"),
    ({"priorityClassName": "Not_A_Name"}, "/priorityClassName"),
    ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    ({"runtime": {"cudaImage": {"tag": "0.1.0-cuda"}}}, "runtime.cudaImage.repository"),
)


def test_names_that_yaml_takes_for_something_else_stay_names(render: Render) -> None:
    values = {
        "settings": {"namespaces": ["on", "123"], "monitoringNamespaces": ["456"]},
        "imagePullSecrets": ["789"],
    }
    found = render(values, name="1.0")
    roles = [role["metadata"]["namespace"] for role in found if role["kind"] == "Role"]
    assert {"on", "123"} <= set(roles)
    pod = one(found, "Deployment")["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "789"}]
    assert "'kubernetes.io/metadata.name': '456'" in str(one(found, "NetworkPolicy"))
    assert all("." not in thing["metadata"]["name"] for thing in found if thing["kind"] == "Service")


@pytest.mark.parametrize(("values", "named"), WRONG, ids=[named for _, named in WRONG])
def test_wrong_values_are_refused_by_name(render: Render, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        render(values)


def leaves(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Values by dotted path, down to where the schema lets users have keys of their own."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        below = schema["properties"][key]
        if isinstance(value, dict) and "properties" in below and value and key not in ("resources", "affinity"):
            found |= leaves(value, below, f"{path}{key}.")
        else:
            found[path + key] = value
    return found


def test_the_readme_lists_every_value_with_its_default(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    values = yaml.safe_load((chart / "values.yaml").read_text())
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (chart / "README.md").read_text(), re.MULTILINE)
    assert {key: json.loads(default) for key, default in rows} == leaves(values, schema)


def test_the_chart_has_the_packages_version(chart: Path) -> None:
    metadata = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert metadata["version"] == metadata["appVersion"] == __version__
