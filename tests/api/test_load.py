"""What a spec means for the budget and for the engine: lengths, stretching, and what does not run yet."""

from typing import Any

import pytest

from plimsoll.api.errors import NotRunYetError, SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.load import load_of, refuse_not_run_yet
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.rope import default_length, override_rope, reachable_length
from tests.api.test_facts import CONFIG


def spec(**parts: Any) -> Any:
    return parse_manifest({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "x"},
        "spec": {"model": {"source": "file://x"}, "accelerator": {"resource": "cpu"}, **parts},
    }).spec  # fmt: skip


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rope(kind: str, **params: float) -> dict[str, Any]:
    return CONFIG | {"rope_scaling": {"rope_type": kind, **params}}


@pytest.mark.parametrize(
    ("config", "default", "longest"),
    [
        (CONFIG, 128, 128),
        (rope("linear", factor=4), 512, 512),
        # Dynamic scaling changes short prompts too once the length is above the trained one: not unasked.
        (rope("dynamic", factor=2), 128, 256),
        (rope("yarn", factor=4, original_max_position_embeddings=64), 256, 256),
        (rope("yarn", factor=2, original_max_position_embeddings=64), 128, 128),
        (
            rope("llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=16),
            128,
            128,
        ),
    ],
)
def test_how_far_positions_reach(config: dict[str, Any], default: int, longest: int) -> None:
    facts = facts_from_config(config)
    assert default_length(facts, facts.rope) == load_of(spec(), facts).trained_length == default
    assert reachable_length(facts, facts.rope) == longest
    assert load_of(spec(context={"maxLength": longest}), facts).max_length == longest
    with pytest.raises(SpecError, match=rf"reach {longest} .*factor"):
        load_of(spec(context={"maxLength": longest + 1}), facts)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_a_stretch_that_is_asked_for_is_used_to_its_end(kind: str) -> None:
    facts = facts_from_config(CONFIG)
    found = load_of(spec(context={"rope": {"type": kind, "factor": 2.5}}), facts)
    assert found.trained_length == 320
    assert reachable_length(facts, override_rope(facts, kind, 2.5)) == 320


def test_the_spec_reaches_the_load() -> None:
    found = load_of(
        spec(
            precision="w4a16", parallelism={"tensor": 2}, serving={"maxRunningRequests": 3, "maxBatchedTokens": 99},
            kvCache={"ratio": 0.5, "precision": "int4", "blockSize": 16},
        ),
        facts_from_config(CONFIG),
    )  # fmt: skip
    assert (found.precision, found.tensor, found.ratio, found.cache_precision, found.block_size) == (
        "w4a16", 2, 0.5, "int4", 16,
    )  # fmt: skip
    assert (found.max_running, found.max_batched_tokens) == (3, 99)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"precision": "float16"}, "spec.precision"),
        (
            {"parallelism": {"tensor": 2}, "accelerator": {"resource": "nvidia.com/gpu"}},
            "spec.parallelism.tensor",
        ),
    ],
)
def test_what_is_sized_and_does_not_run_is_refused_in_plain_words(parts: dict[str, Any], field: str) -> None:
    with pytest.raises(NotRunYetError) as caught:
        refuse_not_run_yet(spec(**parts))
    assert caught.value.field == field
    assert str(caught.value).endswith(("Use bfloat16 or float32", "PLIMSOLL_UNTESTED_GPU_RANKS=1"))


def test_what_runs_is_not_refused() -> None:
    refuse_not_run_yet(spec())
    refuse_not_run_yet(spec(precision="w4a16", kvCache={"precision": "int8"}))
    refuse_not_run_yet(spec(precision="w8a16"))
    refuse_not_run_yet(spec(precision="float32", parallelism={"tensor": 1}))
    refuse_not_run_yet(spec(parallelism={"tensor": 3}))
    refuse_not_run_yet(spec(parallelism={"tensor": "auto"}, accelerator={"resource": "nvidia.com/gpu"}))
    refuse_not_run_yet(spec(precision="float16", accelerator={"resource": "nvidia.com/gpu"}))
