"""How replicas compute, as a status says it: one value where they agree, and what differs where they do not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plimsoll.api.status import checked, known
from plimsoll.operator.plan.serving import DIFFERENT, MOST_KINDS, serving
from plimsoll.operator.snapshot import Page, Pod
from tests.support.miniature import Cluster, spec

ONE = {"deterministic": True, "kernels": "native-avx512", "digest": "sha256:a"}
OTHER = {"deterministic": True, "kernels": "native-avx2", "digest": "sha256:b"}
PLAIN = {"deterministic": False, "kernels": "torch", "reason": "plain torch"}


def pods(*pages: Mapping[str, Any]) -> list[Pod]:
    return [Pod(f"pod-{at}", page=Page(1.0, "ready", serving=page)) for at, page in enumerate(pages)]


def test_replicas_that_agree_have_one_value() -> None:
    assert serving(pods(ONE, ONE)) == ONE
    assert serving(pods(PLAIN)) == PLAIN


def test_before_a_replica_serves_nothing_is_said() -> None:
    assert serving([]) is None
    assert serving([*pods({}), Pod("starts")]) is None
    assert serving(pods({}, ONE)) == ONE


def test_replicas_on_different_processors_are_not_deterministic_together() -> None:
    assert serving(pods(OTHER, ONE, ONE)) == {
        "deterministic": False,
        "reason": DIFFERENT,
        "kinds": [{**ONE, "replicas": 2}, {**OTHER, "replicas": 1}],
    }


def test_processors_whose_kernels_have_the_same_bits_are() -> None:
    tiles = {**ONE, "kernels": "native-avx512-amx"}
    found = serving(pods(ONE, tiles))
    assert found is not None
    assert {key: value for key, value in found.items() if key != "kinds"} == {
        "deterministic": True,
        "digest": "sha256:a",
    }


def test_one_replica_that_is_not_deterministic_says_why_for_all() -> None:
    found = serving(pods(ONE, ONE, PLAIN))
    assert found is not None
    assert (found["deterministic"], found["reason"]) == (False, "plain torch")
    assert "digest" not in found


def test_a_status_holds_a_bounded_number_of_kinds() -> None:
    found = serving(pods(*({**ONE, "digest": f"sha256:{at}"} for at in range(100))))
    assert found is not None
    assert len(found["kinds"]) == MOST_KINDS
    status = {"serving": found}
    assert checked(status) == known(status) == status


def test_the_status_of_a_deployment_has_it_and_it_stays_while_a_new_operator_reads_the_pages() -> None:
    cluster = Cluster(spec=spec(replicas=2))
    cluster.settle()
    pages = [Page(1.0, "ready", serving=one) for one in (ONE, OTHER)]
    cluster.pods = [replace(pod, page=page) for pod, page in zip(cluster.pods, pages, strict=True)]
    cluster.act()
    assert cluster.status["serving"]["deterministic"] is False
    assert len(cluster.status["serving"]["kinds"]) == 2
    before = cluster.status["serving"]
    cluster.pods = [replace(pod, page=None, unread=True) for pod in cluster.pods]
    cluster.act()
    assert cluster.status["serving"] == before
