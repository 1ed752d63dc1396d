"""The policy that holds the operator's account to what the operator does. e2e/test_chart.py asks an API server."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]
KINDS = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


def policy(objects: Objects) -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == KINDS[0]]
    (binding,) = [one for one in objects if one["kind"] == KINDS[1]]
    assert binding["spec"] == {"policyName": found["metadata"]["name"], "validationActions": ["Deny"]}
    return dict(found["spec"])


def test_the_policy_holds_for_the_operators_account_and_for_no_other(render: Render) -> None:
    for values, account in (
        ({}, "plimsoll-operator"),
        ({"serviceAccount": {"create": False, "name": "given"}}, "given"),
        ({"fullnameOverride": "other"}, "other-operator"),
    ):
        found = policy(render(values, namespace="ops"))
        (condition,) = found["matchConditions"]
        assert condition["expression"] == f"request.userInfo.username == 'system:serviceaccount:ops:{account}'"
        assert found["failurePolicy"] == "Fail"


def test_every_resource_that_the_role_may_write_is_held_to_the_policy(render: Render) -> None:
    objects = render()
    found = policy(objects)
    held = {r for rule in found["matchConstraints"]["resourceRules"] for r in rule["resources"]}
    assert all(set(rule["operations"]) == {"CREATE", "UPDATE", "DELETE"} for rule in
               found["matchConstraints"]["resourceRules"])  # fmt: skip
    (role,) = [
        one for one in objects if one["kind"] == "ClusterRole" and one["metadata"]["name"] == "plimsoll-operator"
    ]
    written = {
        r for rule in role["rules"] for r in rule["resources"] if {"create", "patch", "delete"} & set(rule["verbs"])
    }
    # Events say things and make nothing; status is of our own kinds.
    assert written - held == {"events", "modeldeployments/status", "quantizationjobs/status"}


def test_namespaces_of_the_control_plane_are_excluded_and_labels_can_be_asked_for(render: Render) -> None:
    plain = json.dumps(policy(render())["validations"])
    for name in ("kube-system", "kube-public", "kube-node-lease"):
        assert f"'{name}'" in plain
    labelled = {"admissionPolicy": {"namespaceLabels": {"example.com/models": "yes"}, "excludedNamespaces": ["prod"]}}
    given = json.dumps(policy(render(labelled))["validations"])
    assert "namespaceObject.metadata.labels['example.com/models'] == 'yes'" in given
    assert "['prod']" in given


@pytest.mark.parametrize("values", [{"admissionPolicy": {"enabled": False}}, {"settings": {"namespaces": ["team-a"]}}])
def test_no_policy_where_it_is_turned_off_or_roles_name_the_namespaces(render: Render, values: dict[str, Any]) -> None:
    assert not {one["kind"] for one in render(values)} & set(KINDS)


@pytest.mark.parametrize(
    "values",
    [
        {"excludedNamespaces": ["a' || true || 'b"]},
        {"namespaceLabels": {"a": "b' || true"}},
        {"namespaceLabels": {"a'": "b"}},
    ],
)
def test_values_cannot_write_expressions(render: Render, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"admissionPolicy|propertyName"):
        render({"admissionPolicy": values})
