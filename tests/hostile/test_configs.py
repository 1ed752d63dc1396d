"""Hostile configurations and forged reports: a refusal that names the key, or facts that every sum can be made of."""

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from plimsoll.api.budget import Load, budget
from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import CheckpointError, PlimsollError
from plimsoll.api.facts import config_notes, facts_from_config
from plimsoll.api.families.registry import all_families
from plimsoll.api.inspection import MAX_BYTES, Inspection
from plimsoll.api.rope import check_length, default_length, override_rope
from tests.support.bounded import bounded, refusal
from tests.support.miniature import CONFIG

#: Values as JSON can carry them, digits beyond a float's range included.
NASTY: tuple[Any, ...] = (
    True, 0, -1, 0.5, 1e-300, float("inf"), float("-inf"), float("nan"), 1e308, 2**31, 2**63, 10**400, -(10**400),
    "", "1", "1e400", "\x1b]52;c;eA==\x07", "x" * 10_000, [], [[]] * 1000, {}, {"a": {"b": {}}}, [None], ["1"] * 5000,
)  # fmt: skip
KEYS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "head_dim",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "sliding_window", "max_window_layers",
    "original_max_position_embeddings", "partial_rotary_factor", "tie_word_embeddings", "attention_bias", "mlp_bias",
    "eos_token_id", "bos_token_id", "torch_dtype", "dtype", "layer_types", "use_sliding_window", "architectures",
    "model_type", "hidden_act", "rope_scaling", "rope_parameters", "quantization_config", "compression_config",
)  # fmt: skip
SCALING_KEYS = (
    "rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor", "rope_theta", "truncate",
    "partial_rotary_factor",
)  # fmt: skip
SCALINGS: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
)
QUANTIZATIONS: tuple[dict[str, Any], ...] = (
    {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "dynamic": {"-:.*gate": {}}},
)
PATTERNS = ("(" * 5000, "(a+)+$", "a{99999999999999999999}", "(?:" * 400 + ")" * 400, "[", "\\", "(?P<a>x)(?P<a>y)")


def uses(config: dict[str, Any]) -> None:
    """Everything that is worked out from a configuration before a checkpoint is loaded."""
    facts = facts_from_config(config)
    config_notes(config)
    default_length(facts, facts.rope)
    for wanted in (1, 10**9):
        refusal(check_length, facts, facts.rope, wanted)
    for kind in ("linear", "dynamic", "yarn", "llama3", "default"):
        default_length(facts, override_rope(facts, kind, 4.0))
    for load in (Load(), Load(max_length=100, max_running=1)):
        error = refusal(budget, facts, DeviceFacts("cpu", 1 << 30), load)
        assert error is None or len(str(error)) < 4000


def named(error: PlimsollError, key: str) -> bool:
    """Whether a short message names the key, or one that it is at odds with."""
    return len(str(error)) < 1000 and (key in f"{error.field} {error}" or error.field in (*KEYS, *SCALING_KEYS))


@pytest.mark.parametrize("architecture", sorted(all_families()))
@pytest.mark.parametrize("key", KEYS)
def test_a_hostile_value_of_a_key_is_refused_by_name_or_harmless(architecture: str, key: str) -> None:
    for value in NASTY:
        error = refusal(uses, {**CONFIG, "architectures": [architecture], key: value})
        assert error is None or named(error, key), (value, error)


def test_a_hint_names_few_of_the_numbers_that_would_do() -> None:
    # No number of heads that is allowed has more divisors.
    error = refusal(uses, {**CONFIG, "num_attention_heads": 2520, "num_key_value_heads": 11})
    assert error is not None
    assert (error.field, error.fix) == (
        "num_key_value_heads",
        "It must be one of [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14]",
    )


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_a_hostile_value_of_a_scaling_is_refused_by_name_or_harmless(scaling: dict[str, Any], place: str) -> None:
    for key in SCALING_KEYS:
        for value in NASTY:
            error = refusal(uses, {**CONFIG, place: {**scaling, key: value}})
            assert error is None or named(error, key), (key, value, error)


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=lambda given: given["quant_method"])
def test_a_hostile_value_of_a_quantization_is_refused_by_name_or_harmless(quantization: dict[str, Any]) -> None:
    for key in (*quantization, "modules_to_not_convert", "ignore", "config_groups", "desc_act"):
        for value in NASTY:
            error = refusal(uses, {**CONFIG, "quantization_config": {**quantization, key: value}})
            assert error is None or str(error.field).startswith("quantization_config"), (key, value, error)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern[:12])
def test_a_hostile_pattern_is_refused_or_matches_in_time(pattern: str) -> None:
    given = {**QUANTIZATIONS[1], "dynamic": {f"-:{pattern}": {}}}
    error = refusal(uses, {**CONFIG, "quantization_config": given})
    assert error is None or error.field == "quantization_config.dynamic"


def report(**changes: Any) -> str:
    """A forged report of an inspection."""
    plain = {"digest": "sha256:0", "revision": "r", "bytes": 1, "path": "", "config": dict(CONFIG), "ends": [1]}
    text = json.dumps({**plain, "tensors": None, **changes}).encode()
    return "plimsoll-inspection/1 " + base64.b85encode(zlib.compress(text, 9)).decode()


def tables() -> Iterator[dict[str, Any]]:
    """Tables of tensors that are cheap to write and dear to expand."""
    again = ",".join(["0-131071"] * 20_000)
    yield {"rates": {"F32": [4, 1]}, "rows": [["a.*.weight", [1], {"F32": again}]]}
    yield {"rates": {"F32": [4, 1]}, "rows": [["a.weight", [1], {"F32": "0-131071"}]] * 2000}
    yield {"rates": {"F32": [4, 1]}, "rows": [["a.weight", [10**4000] * 200, {"F32": ""}]]}
    yield {"rates": {"F32": [10**4000, 3]}, "rows": [["a.weight", [3] * 20_000, {"F32": ""}]]}
    yield {"rates": {"F32": [4, 1]}, "rows": [["a.*.weight", [1], {"F32": "5-1"}], ["b", "10", {}], [1, 2]]}


@pytest.mark.parametrize("index", range(5))
def test_a_forged_table_of_tensors_is_damaged_and_expands_in_time(index: int) -> None:
    with bounded(2.0), pytest.raises(CheckpointError, match="damaged report"):
        Inspection.decode(report(tensors=list(tables())[index]))


def test_a_small_report_of_countless_heads_costs_no_time() -> None:
    forged = report(config={**CONFIG, "num_attention_heads": 2147483648, "num_key_value_heads": 3, "head_dim": 2})
    assert len(forged) < MAX_BYTES
    with bounded(2.0), pytest.raises(CheckpointError, match="num_attention_heads"):
        Inspection.decode(forged)


def test_a_report_of_a_quantized_model_without_its_tensors_is_damaged() -> None:
    """Which modules are whole would have to be found by the expressions that the report brings along."""
    hostile = {**QUANTIZATIONS[1], "dynamic": {"-:(m+)+$": {}}}
    with bounded(2.0), pytest.raises(CheckpointError, match="damaged report"):
        Inspection.decode(report(config={**CONFIG, "quantization_config": hostile}))
