"""The policy that holds the operator's account to what the operator does. e2e/test_chart.py asks an API server."""

import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
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


@pytest.mark.parametrize("namespaces", [[], ["team-a"]])
def test_no_policy_where_it_is_turned_off(render: Render, namespaces: list[str]) -> None:
    values = {"admissionPolicy": {"enabled": False}, "settings": {"namespaces": namespaces}}
    assert not {one["kind"] for one in render(values)} & set(KINDS)


def test_policy_and_roles_agree_on_the_namespaces_that_are_served(render: Render) -> None:
    objects = render({"settings": {"namespaces": ["team-a", "team-b"]}}, namespace="ops")
    roles = [one for one in objects if one["kind"] == "Role" and one["metadata"]["name"] == "plimsoll-operator"]
    served = [one["metadata"]["namespace"] for one in roles]
    assert served == ["team-a", "team-b"]
    found = policy(objects)
    assert f"request.namespace in {served}".replace(" '", "'") in [one["expression"] for one in found["validations"]]
    # All that a Role may write is held to the policy, as a ClusterRole's is.
    held = {r for rule in found["matchConstraints"]["resourceRules"] for r in rule["resources"]}
    written = {r for rule in roles[0]["rules"] for r in rule["resources"] if {"create", "delete"} & set(rule["verbs"])}
    assert written - held == {"events"}
    everywhere = json.dumps(policy(render(namespace="ops"))["validations"])
    assert "settings.namespaces" not in everywhere


def test_releases_of_one_name_that_serve_other_namespaces_have_policies_of_their_own(render: Render) -> None:
    def names(namespace: str) -> set[str]:
        objects = render({"settings": {"namespaces": ["team-a"]}}, namespace=namespace)
        return {one["metadata"]["name"] for one in objects if one["kind"] in KINDS}

    assert names("ops").isdisjoint(names("other"))


def test_the_policy_allows_the_accounts_that_the_settings_allow(render: Render) -> None:
    patterns = ["team-a/models", "*/plimsoll-*", "a?/[!x]b[cd]", "t/x[a-c]"]
    accounts = [
        "team-a/models", "team-a/models-2", "other/models", "b/plimsoll-x", "b/plimsoll", "ab/ybc", "ab/xbc", "ab/ybe",
        "abc/ybc", "t/xb", "t/xd", "t/x-",
    ]  # fmt: skip
    given = json.dumps(policy(render({"settings": {"allowedServiceAccounts": patterns}}))["validations"])
    expressions = re.findall(r"matches\(r'([^']+)'\)", given)
    assert len(expressions) == len(patterns)
    for pattern, expression in zip(patterns, expressions, strict=True):
        for account in accounts:
            assert bool(re.search(expression, account)) == fnmatchcase(account, pattern), (pattern, account)


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
