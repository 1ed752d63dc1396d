"""The dashboard asks for metrics that exist: those of model pods and those of the operator."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from plimsoll.operator.metrics import Metrics as OperatorMetrics
from plimsoll.runtime.messages import EngineStats
from plimsoll.runtime.server.metrics import Metrics as PodMetrics

#: Suffixes that a type of metric adds to its name, which Prometheus stores and a query names.
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "info": ("_info",)}


def exported(registry: CollectorRegistry) -> set[str]:
    """Names of series, whether or not anything was counted yet."""
    return {family.name + suffix for family in registry.collect() for suffix in SUFFIXES[family.type]}


@pytest.fixture(scope="module")
def dashboard(chart: Path) -> dict[str, Any]:
    return json.loads((chart / "files" / "dashboards" / "plimsoll.json").read_text())


def asked(dashboard: dict[str, Any]) -> Iterable[str]:
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [v["query"]["query"] for v in dashboard["templating"]["list"] if isinstance(v["query"], dict)]
    return {name for query in queries for name in re.findall(r"\bplimsoll[:_][a-z_:]+", query)}


def test_every_metric_of_the_dashboard_is_exported(dashboard: dict[str, Any]) -> None:
    pods = exported(PodMetrics("model", lambda: EngineStats(), lambda: None, lambda: 0).registry)
    names = set(asked(dashboard))
    assert any(name.startswith("plimsoll:") for name in names)
    assert any(name.startswith("plimsoll_") for name in names)
    assert names - pods - exported(OperatorMetrics().registry) == set()


def test_panels_do_not_share_an_id_or_a_place(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken = [
        (x, y)
        for grid in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(taken) == len(set(taken))


def test_the_dashboard_arrives_as_it_is_written(render: Callable[..., Any], dashboard: dict[str, Any]) -> None:
    (found,) = [o for o in render({"dashboard": {"enabled": True}}) if o["metadata"]["name"] == "plimsoll-dashboard"]
    assert json.loads(found["data"]["plimsoll.json"]) == dashboard
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
