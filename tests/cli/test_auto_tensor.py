"""`parallelism.tensor: auto`: `plan`, `up`, the operator and the engine take the same number of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.inspection import Inspection
from plimsoll.api.manifest import parse_manifest
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.cli.up import _budget
from plimsoll.runtime.config import from_deployment
from plimsoll.runtime.engine.worker.memory import find_device, find_dtype, plan_memory
from plimsoll.runtime.kernels.selection import select
from plimsoll.runtime.machine import cgroup
from tests.cli.test_plan import manifest, run
from tests.support.miniature import Cluster


def chosen(
    gguf: Path, folder: Path, capsys: pytest.CaptureFixture[str], **parts: Any
) -> dict[str, tuple[str, int, list[str]]]:
    """(precision, tensor size, what was passed over) as each of them has it."""
    file = manifest(folder, f"file://{gguf}", context={"maxLength": 2048}, **parts)
    deployment, facts = parse_manifest(Path(file).read_text()), open_checkpoint(gguf).facts
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    assert code == 0
    plan = json.loads(out)
    assert plan["notRunYet"] is None
    found = {"plan": (plan["precision"], plan["tensor"], [one["option"] for one in plan["rejected"]])}
    budget = _budget(deployment, facts)
    assert budget is not None
    found["up"] = (budget.precision, budget.tensor, [one.option for one in budget.rejected])
    engine, _ = from_deployment(deployment, gguf)
    device = find_device("cpu")
    dtype = find_dtype(engine.precision, device)
    memory = plan_memory(engine, facts, select(device, dtype, engine.kernels), dtype)
    found["engine"] = (memory.precision, memory.tensor, [one.option for one in memory.rejected])
    spec = {**deployment.spec.model_dump(by_alias=True, exclude_unset=True), "model": {"source": "pvc://models/demo"}}
    cluster = Cluster(spec=spec, found=Inspection("sha256:1", "1", 1, gguf.name, facts))
    cluster.settle()
    status = cluster.status["budget"]
    found["operator"] = (status["precision"], status["tensor"], [one["option"] for one in status["rejected"]])
    (one,) = (one for (kind, _), one in cluster.children.items() if kind == "ReplicaSet")
    (server,) = one["spec"]["template"]["spec"]["containers"]
    pod = next(json.loads(env["value"]) for env in server["env"] if env["name"] == "PLIMSOLL_DEPLOYMENT")["spec"]
    found["pod"] = (pod["precision"], pod["parallelism"]["tensor"], found["operator"][2])
    return found


@pytest.mark.parametrize(
    ("wish", "mib", "precision", "tensor"),
    [
        ("auto", 780, "w4a16", 1), ("auto", 640, "w4a16", 1), ("auto", 525, "w4a16", 2), ("auto", 467, "w4a16", 3),
        ("bfloat16", 650, "bfloat16", 2), ("bfloat16", 552, "bfloat16", 3),
    ],
)  # fmt: skip
def test_auto_takes_the_fewest_ranks_that_hold_it_everywhere(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    wish: str, mib: int, precision: str, tensor: int,
) -> None:  # fmt: skip
    line = {"resource": "cpu", "memory": f"{mib}Mi"}
    # Rows of 8 bits take less, and the operator does not know which processor will run them.
    rows = {"activationPrecision": "bfloat16"} if wish == "auto" else {}
    found = chosen(smollm2_gguf, tmp_path, capsys, accelerator=line, precision=wish, serving=rows)
    # Eight bits would round this checkpoint's blocks of four bits a second time.
    wishes = ("w4a16", "bfloat16") if wish == "auto" else (wish,)
    order = [(size, one) for size in range(1, tensor + 1) for one in wishes]
    before = order[: order.index((tensor, precision))]
    passed = [f"precision {one}" + (f", tensor {size}" if size > 1 else "") for size, one in before]
    assert set(found) == {"plan", "up", "engine", "operator", "pod"}
    for who, (*answer, options) in found.items():
        # With int8 in the place of floats in the cache none of them holds it either.
        assert (*answer, [one for one in options if "cache" not in one]) == (precision, tensor, passed), who


def test_ranks_that_would_share_a_machine_are_not_started_by_auto(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 540 << 20)
    file = manifest(
        tmp_path, f"file://{smollm2_gguf}", accelerator={"resource": "cpu"}, precision="bfloat16",
        context={"maxLength": 2048},
    )  # fmt: skip
    code, _, err = run(capsys, "-f", file)
    assert code == 1
    assert "on 8 devices" not in err
    assert "a device of" in err or "accelerator.memory" in err
