"""The tables of docs/sizing.md and docs/quantization-jobs.md are what the planner computes from the models' shapes."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.budget import RUNS, budget
from plimsoll.api.device import TORCH_TABLE, DeviceFacts
from plimsoll.api.errors import DoesNotFitError, PlimsollError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.job_budget import JobLoad, job_needs, largest_group
from plimsoll.api.load import load_of
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.model import ModelFacts

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def config(family: str, width: int, inner: int, layers: int, heads: int, kv: int, words: int, **more: Any) -> Any:
    """config.json with the public shapes of a model."""
    return {
        "architectures": [f"{family}ForCausalLM"], "model_type": family.lower(), "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "vocab_size": words, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
        "hidden_act": "silu", "max_position_embeddings": 32768, "tie_word_embeddings": False, **more,
    }  # fmt: skip


LONG = {"max_position_embeddings": 131072}
GEMMA = {
    "head_dim": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS = {
    "SmolLM2-135M": config("Llama", 576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "Llama-3.2-1B": config("Llama", 2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True, **LONG),
    "Qwen2.5-7B": config("Qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Mistral-7B v0.3": config("Mistral", 4096, 14336, 32, 32, 8, 32768),
    "Llama-3.1-8B": config("Llama", 4096, 14336, 32, 32, 8, 128256, **LONG),
    "Gemma-2-9B": config("Gemma2", 3584, 14336, 42, 16, 8, 256000, **GEMMA),
    "Qwen2.5-14B": config("Qwen2", 5120, 13824, 48, 40, 8, 152064),
}


@cache
def facts_of(model: str) -> ModelFacts:
    return facts_from_config(CONFIGS[model])


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the table whose header begins with `heading`; the header first."""
    text = (ROOT / "docs" / page).read_text()
    table = text[text.index(f"| {heading}") :].partition("\n\n")[0]
    found = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
    return [found[0], *found[2:]]


def planned(model: str, precision: str, length: int, total: int) -> str:
    """`precision`, requests; `precision` int8, requests where the cache is held so; or `refused`."""
    spec = parse_manifest(
        "apiVersion: plimsoll.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: m}\nspec:\n"
        f"  model: {{source: hf://a/b}}\n  accelerator: {{resource: nvidia.com/gpu}}\n  precision: {precision}\n"
        f"  context: {{maxLength: {length}}}\n", "page",
    ).spec  # fmt: skip
    facts = facts_of(model)
    try:
        found = budget(facts, DeviceFacts("cuda", total, TORCH_TABLE), load_of(spec, facts), RUNS)
    except DoesNotFitError:
        return "refused"
    held = "" if found.cache_precision == "float" else f" {found.cache_precision}"
    return f"`{found.precision}`{held}, {found.concurrent_requests}"


@pytest.mark.parametrize("length", [8192, 32768])
def test_requests_on_common_cards_are_the_planners(length: int) -> None:
    header, *table = rows("sizing.md", f"model, `maxLength: {length}`")
    sizes = [float(cell.split()[0]) for cell in header[1:]]
    assert len(table) >= 5
    for model, *cells in table:
        assert cells == [planned(model, "auto", length, int(size * GIB)) for size in sizes], model


def test_the_least_memory_of_common_models_is_the_planners() -> None:
    _, *table = rows("sizing.md", "model | 8,192 tokens")
    assert len(table) >= 5
    wanted = [(length, precision) for length in (8192, 32768) for precision in ("bfloat16", "w8a16", "w4a16")]
    for model, *cells in table:
        for cell, (length, precision) in zip(cells, wanted, strict=True):
            if cell == "–":
                with pytest.raises(PlimsollError, match="positions of this model"):
                    planned(model, precision, length, GIB)
                continue
            low, high = (int((float(cell) + step) * GIB) for step in (-0.06, 0.06))
            assert planned(model, precision, length, low) == "refused", (model, precision, length)
            assert planned(model, precision, length, high) in (f"`{precision}`, 1", f"`{precision}` int8, 1"), (
                model,
                precision,
                length,
            )


def test_memory_and_disk_of_quantization_jobs_are_the_operators() -> None:
    _, *table = rows("quantization-jobs.md", "model, method, text")
    assert len(table) >= 5
    for name, *cells in table:
        model, method, text = re.sub("`", "", name).split(", ")
        facts, itself = facts_of(model), text == "self"
        samples = (32 if itself else 128) if method == "awq" else 0
        group = 0 if method == "int8" else largest_group(facts)
        bits = 8 if method == "int8" else 4
        found = job_needs(facts, JobLoad(method, bits, group, samples, 512, sampled=itself, held_out=16))
        sizes = (
            found.walk, found.sampling, found.evaluation, found.memory, found.output, found.scratch, found.disk,
        )  # fmt: skip
        assert [cell.strip("*") for cell in cells] == [f"{size / GIB:.1f} GiB" if size else "–" for size in sizes], name
