"""The operator with many deployments at once, on played nodes (KWOK). A thousand take minutes: `-m long`."""

import argparse
import os
from typing import Any

import pytest

from benchmarks.operator_scale import run
from e2e.cluster import Cluster
from e2e.played import needs_played_nodes
from e2e.results import Result

COUNT = int(os.environ.get("PLIMSOLL_E2E_SCALE", "1000"))
#: Of an operator that has come to rest.
MEMORY_MIB, CPU_PERCENT = 200.0 / 1.048576, 5.0
POD_SECONDS, SETTLED_SECONDS = 1.0, 60.0


@pytest.mark.long
@pytest.mark.alone
def test_a_thousand_deployments(cluster: Cluster, result: Result) -> None:
    needs_played_nodes(cluster)
    asked = {"count": COUNT, "rate": 10.0, "settle": 60.0, "idle": 300.0}
    found = run(argparse.Namespace(**asked, cluster_wide=False, status_pages=True, audit=None, output=None, log=None))
    result.note(**found)
    rest = found["rest"]
    assert not rest["objects changed"]
    writes = rest["operator requests by verb (PUT renews the lease)"]
    assert {verb: writes[verb] for verb in ("POST", "PATCH", "DELETE")} == {"POST": 0, "PATCH": 0, "DELETE": 0}
    assert rest["operator cpu percent of a core"] < CPU_PERCENT
    for again in ("restart by SIGTERM", "restart by SIGKILL"):
        assert found[again]["seconds to settle"] < SETTLED_SECONDS
        assert found[again]["pods changed"] == 0
    assert max(step["operator memory MiB"]["peak"] for step in _with_memory(found)) < MEMORY_MIB
    assert found["refusals"]["with a sum"] == found["refusals"]["count"]
    assert found["refusals"]["pods made"] == 0
    assert found["apply"]["apply to pod"]["p99"] < POD_SECONDS


def _with_memory(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in found.values() if "operator memory MiB" in step]
