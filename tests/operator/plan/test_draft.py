"""A deployment with a draft waits for the headers of both, and is sized with both."""

from dataclasses import replace
from typing import Any

from plimsoll.api.status import checked
from plimsoll.operator.actions import Apply
from plimsoll.operator.plan.planner import Plan, plan
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Inspecting, Pod
from tests.support.miniature import Cluster, inspection, spec

DRAFT = {"speculativeTokens": 4, "draft": {"source": "pvc://models/small"}}


def look(draft: Inspecting | None, settings: Settings = Settings(), **changes: Any) -> Plan:  # noqa: B008
    """The first plan of a deployment whose model was inspected."""
    made = Cluster(spec=spec(**({"serving": DRAFT} | changes)), recorded=True)
    snapshot = replace(made.snapshot(made.room), inspecting_draft=draft, taken={})
    return plan(snapshot, settings, "1")


def condition(found: Plan, kind: str) -> dict[str, Any]:
    return next(dict(one) for one in found.status["conditions"] if one["type"] == kind)


def applied(found: Plan, kind: str) -> list[dict[str, Any]]:
    return [dict(one.object) for one in found.actions if isinstance(one, Apply) and one.object["kind"] == kind]


def test_the_drafts_headers_are_read_before_any_pod_serves() -> None:
    found = look(Inspecting("small"))
    (pod,) = applied(found, "Pod")
    assert pod["spec"]["containers"][0]["args"][1] == "file:///source/small"
    assert not applied(found, "ReplicaSet")
    assert condition(found, "Accepted")["reason"] == "Inspecting"


def test_both_are_looked_at_at_once() -> None:
    made = Cluster(spec=spec(serving=DRAFT))
    snapshot = replace(made.snapshot(made.room), inspecting_draft=Inspecting("small"))
    pods = applied(plan(snapshot, Settings(), "1"), "Pod")
    assert [pod["spec"]["containers"][0]["args"][1] for pod in pods] == [
        "file:///source/smollm2",
        "file:///source/small",
    ]


def test_a_draft_that_cannot_be_read_is_said() -> None:
    failed = Pod("look", phase="Failed", created=1_000_000.0)
    found = look(Inspecting("small", error="no such folder", pod=failed))
    assert condition(found, "SourceReady")["message"] == "pvc://models/small cannot be read: no such folder"
    assert not applied(found, "ReplicaSet")


def test_the_budget_counts_the_draft_and_the_pod_mounts_it() -> None:
    small = inspection(num_hidden_layers=4)
    found = look(Inspecting("small", small))
    assert condition(found, "Accepted")["reason"] == "Fits"
    assert " draft + " in condition(found, "Accepted")["message"]
    terms = found.status["budget"]["perDevice"]
    assert 0 < terms["draft"] < terms["weights"]
    assert terms["total"] == sum(size for name, size in terms.items() if name != "total")
    (revision,) = applied(found, "ReplicaSet")
    assert "draft" in {volume["name"] for volume in revision["spec"]["template"]["spec"]["volumes"]}
    plain = look(None, serving={})
    assert "draft" not in plain.status["budget"]["perDevice"]
    assert applied(plain, "ReplicaSet")


def test_rank_0_of_several_has_the_draft_on_its_line() -> None:
    small = inspection(num_hidden_layers=4)
    found = look(Inspecting("small", small), accelerator={"resource": "cpu"}, parallelism={"tensor": 2})
    assert condition(found, "Accepted")["reason"] == "Fits"
    assert " draft + " in condition(found, "Accepted")["message"]
    first, second = found.status["budget"]["ranks"]
    terms = found.status["budget"]["perDevice"]
    assert {name: first[name] for name in terms} == terms
    assert terms["draft"] > 0
    assert "draft" not in second
    assert second["kvCache"] < first["kvCache"]
    assert checked(found.status)["budget"]["ranks"] == [first, second]


def test_each_pod_of_a_group_mounts_the_draft() -> None:
    """They have one template; the leader's is the one that opens it."""
    small = inspection(num_hidden_layers=4)
    found = look(Inspecting("small", small), accelerator={"resource": "cpu"}, parallelism={"tensor": 2, "nodes": 2})
    assert condition(found, "Accepted")["reason"] == "Fits"
    (revision,) = applied(found, "ReplicaSet")
    assert "draft" in {volume["name"] for volume in revision["spec"]["template"]["spec"]["volumes"]}


def test_a_draft_is_refused_where_it_cannot_run_or_may_not_be_read() -> None:
    small = Inspecting("small", inspection(num_hidden_layers=4))
    listed = look(small, Settings(allowed_sources=("pvc://models/smollm2",)))
    assert condition(listed, "Accepted")["reason"] == "SourceNotAllowed"
    assert "spec.serving.draft.source" in condition(listed, "Accepted")["message"]
    one_machine = look(small, serving={**DRAFT, "draft": {"source": "file:///small"}})
    assert "spec.serving.draft.source: names a path of one machine" in condition(one_machine, "Accepted")["message"]
