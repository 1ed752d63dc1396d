"""Every way out of a refusal is one: applied to the wish as it is written, it makes the same budget close."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.budget import RUNS, Budget, Load, budget
from plimsoll.api.deployment import ModelDeployment
from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.load import load_of
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.model import ModelFacts
from plimsoll.api.names import ARGUMENTS, MANIFEST, OPTIONS, Names
from plimsoll.api.quantity import parse_quantity
from plimsoll.runtime.config import EngineConfig, engine_load, from_deployment
from tests.api.test_budget import DEVICES, LOADS, configs
from tests.support.miniature import CONFIG

GIB, MIB = 1 << 30, 1 << 20
SMALL = facts_from_config(CONFIG)


def applied(way: str, device: DeviceFacts, load: Load, names: Names) -> tuple[DeviceFacts, Load]:
    """`load` and `device` changed as a user would who reads `way`."""
    fields = {
        names.precision: ("precision", str), names.max_length: ("max_length", int), names.ratio: ("ratio", float),
        names.cache_bytes: ("cache_bytes", lambda text: int(parse_quantity(text))),
        names.max_batched_tokens: ("max_batched_tokens", int),
        "parallelism.tensor": ("tensor", int),
    }  # fmt: skip
    for part in re.sub(r" \(.*\)$", "", way).split(" and "):
        if part.startswith(names.memory):
            device = replace(device, total=int(parse_quantity(part.removeprefix(names.memory).strip())))
        elif part == f"no {names.host_bytes}":
            load = replace(load, host_bytes=0)
        elif part == names.int8_cache:
            load = replace(load, cache_precision="int8")
        elif part.endswith("instead of an absolute size"):
            load = replace(load, cache_bytes=None)
        else:
            name, _, value = part.rpartition(" ")
            field, kind = fields[name]
            load = replace(load, **{field: kind(value)})
    return device, load


def ways(facts: ModelFacts, device: DeviceFacts, load: Load, **options: Any) -> tuple[str, ...] | None:
    try:
        budget(facts, device, load, **options)
    except DoesNotFitError as error:
        return error.ways
    except SpecError:
        return None
    return None


@settings(max_examples=50, deadline=None)
@given(configs(), DEVICES, LOADS, st.sampled_from([None, RUNS]), st.sampled_from([MANIFEST, OPTIONS, ARGUMENTS]))
def test_every_way_out_is_one(
    facts: ModelFacts, device: DeviceFacts, load: Load, runs: frozenset[str] | None, names: Names
) -> None:
    found = ways(facts, device, load, runs=runs, names=names)
    if found is None:
        return
    assert found, "no way out at all"
    assert found[-1].startswith(names.memory)
    changes = [way.count(" and ") for way in found[:-1]]
    assert changes == sorted(changes), "the fewest changes first"
    for way in found:
        there, changed = applied(way, device, load, names)
        assert budget(facts, there, changed, runs), way


@settings(max_examples=20, deadline=None)
@given(configs(), DEVICES, LOADS, st.integers(1, 4 * GIB))
def test_every_way_out_of_an_absolute_cache_is_one(
    facts: ModelFacts, device: DeviceFacts, load: Load, cache: int
) -> None:
    load = replace(load, cache_bytes=cache)
    for way in ways(facts, device, load, runs=RUNS) or ():
        assert budget(facts, *applied(way, device, load, MANIFEST), RUNS), way


def test_a_refusal_under_auto_names_one_sum_and_the_device_that_closes_it() -> None:
    card = DeviceFacts("cpu", 400 * MIB)
    with pytest.raises(DoesNotFitError) as refused:
        budget(SMALL, card, Load(), RUNS)
    said = str(refused.value)
    needed = re.search(r"workspace and context = ([\d.]+) MiB of 400\.0 MiB", said)
    device = re.search(r"a device of (\d+)Mi \(auto takes (\w+) there\)", said)
    assert needed
    assert device, said
    assert float(needed[1]) < int(device[1])
    assert said.startswith(f"precision {device[2]}, the smallest that auto may take, needs")
    assert budget(SMALL, replace(card, total=int(device[1]) * MIB), Load(), RUNS).precision == device[2]


def test_two_changes_are_named_together_where_one_is_not_enough() -> None:
    load = Load("bfloat16", max_length=8192)
    both = [way for way in ways(SMALL, DeviceFacts("cpu", 540 * MIB), load, runs=RUNS) or () if " and " in way]
    assert both
    for way in both:
        assert budget(SMALL, *applied(way, DeviceFacts("cpu", 540 * MIB), load, MANIFEST), RUNS)


def test_a_smaller_step_is_a_way_out() -> None:
    found = ways(SMALL, DeviceFacts("cpu", 640 * MIB), Load("bfloat16"), runs=RUNS)
    assert any(way.startswith("serving.maxBatchedTokens") for way in found or ()), found


WISHES = st.fixed_dictionaries(
    {},
    optional={
        "precision": st.sampled_from(["auto", "bfloat16", "w4a16"]),
        "kvCache": st.fixed_dictionaries(
            {},
            optional={
                "ratio": st.floats(0.1, 1),
                "blockSize": st.just(32),
                "hostMemory": st.sampled_from(["64Mi", "3Gi"]),
            },
        ),
        "context": st.fixed_dictionaries(
            {}, optional={"maxLength": st.integers(1, 9000), "rope": st.just({"type": "dynamic", "factor": 2.0})}
        ),
        "serving": st.fixed_dictionaries(
            {}, optional={"maxRunningRequests": st.integers(1, 99), "maxBatchedTokens": st.integers(16, 4096)}
        ),
    },
)


def deployment(wish: dict[str, Any], memory: str) -> ModelDeployment:
    return parse_manifest({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "x"},
        "spec": {"model": {"source": "file://x"}, "accelerator": {"resource": "cpu", "memory": memory}, **wish},
    })  # fmt: skip


def closed(load: Any, device: DeviceFacts) -> Budget | str:
    try:
        return budget(SMALL, device, load(), RUNS)
    except (DoesNotFitError, SpecError) as error:
        return type(error).__name__


@settings(max_examples=50, deadline=None)
@given(WISHES, st.sampled_from(["400Mi", "600Mi", "2Gi"]))
def test_plan_and_the_engine_close_one_budget_on_one_manifest(wish: dict[str, Any], memory: str) -> None:
    one = deployment(wish, memory)
    device = DeviceFacts("cpu", int(parse_quantity(memory)))

    def of_the_engine() -> Load:
        engine, _ = from_deployment(one, Path("x"))
        assert isinstance(engine, EngineConfig)
        return engine_load(engine, SMALL, "cpu")

    assert closed(lambda: load_of(one.spec, SMALL), device) == closed(of_the_engine, device)
