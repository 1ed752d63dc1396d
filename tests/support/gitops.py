"""How tools that only apply manifests read a status."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lupa.lua51 import LuaRuntime  # the language of Argo CD's health checks

SHIPPED = Path(__file__).parents[2] / "examples" / "gitops" / "argocd" / "health.yaml"

#: What Argo CD calls the words of kstatus.
HEALTH = {"InProgress": "Progressing", "Failed": "Degraded", "Current": "Healthy"}


def kstatus(generation: int, status: Mapping[str, Any]) -> str:
    """As Flux and `kubectl wait` do for kinds they do not know, by the rules of sigs.k8s.io/cli-utils/pkg/kstatus.

    A generation not yet observed and `Reconciling` mean in progress, `Stalled` means failed, then `Ready` decides.
    """
    if status.get("observedGeneration", generation) != generation:
        return "InProgress"
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions.get("Ready", "True") == "True" else "InProgress"


def argocd(kind: str, generation: int, status: Mapping[str, Any] | None) -> str:
    """As Argo CD does with the lines that we ship for `kind`, run by a Lua of the version it has (5.1)."""
    shipped = yaml.safe_load(SHIPPED.read_text())["data"]
    lua = LuaRuntime(register_eval=False, register_builtins=False)
    live = {"metadata": {"generation": generation}, **({} if status is None else {"status": dict(status)})}
    check = lua.execute(f"return function(obj)\n{shipped[f'resource.customizations.health.plimsoll.dev_{kind}']}\nend")
    found = check(lua.table_from(live, recursive=True))
    assert found.message
    return str(found.status)
