"""Golden outputs: whether a change of the engine or of `quantjob` keeps every bit.

    python -m benchmarks.golden_outputs --save parent.json      # in a checkout of the parent commit
    python -m benchmarks.golden_outputs --compare parent.json   # in a checkout of the change

Runs the demo model (if it is there) and a tiny random checkpoint of every variant in `VARIANTS`, from safetensors and
from GGUF, in each precision on each kernel table, and quantizes the variants of `QUANTIZED`. One line an output: a
SHA-256 of all log-probabilities and greedy tokens, or of the files that `quantjob` wrote. Outputs of the native table
depend on no number of threads; those of the torch table may.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.kernels.selection import select
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import make_checkpoint, make_gguf, make_model
from tests.support.paging import greedy, make_runner, prompt_logprobs
from tests.support.quantizing import job_options, run_job, write_text

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama, tied, biased": (
        "LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, odd heads, llama3 rope": (
        "LlamaForCausalLM",
        {
            "hidden_size": 96, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 20,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        },
    ),
    "mistral": ("MistralForCausalLM", {}),
    "mistral, full": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2, sliding": ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "internlm2": ("InternLM2ForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 24}),
}  # fmt: skip
#: Variants that are read from GGUF as well.
FROM_GGUF = ("llama", "llama, tied, biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
#: Variants that `quantjob` quantizes.
QUANTIZED = ("llama", "llama, tied, biased", "mistral", "qwen2", "qwen3", "internlm2", "gemma2", "gemma3", "phi3")
PRECISIONS = ("float32", "bfloat16", "w8a16", "w4a16")
TABLES = ("native", "torch")
LENGTHS = (37, 1, 150, 16)
#: Log-probabilities kept of each output, to say how far apart two outputs of other bits are.
KEPT = 64


def main() -> int:
    """The exit code: 1 where an output has other bits than the saved one."""
    parser = argparse.ArgumentParser(description="Compare the engine's outputs with those of another commit.")
    parser.add_argument("--save", type=Path, help="Write all outputs to this file.")
    parser.add_argument("--compare", type=Path, help="Compare all outputs with those of this file.")
    parser.add_argument("--only", default="", help="Run the outputs whose name contains this text.")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    wanted = json.loads(asked.compare.read_text()) if asked.compare else None
    found: dict[str, Any] = {}
    other = 0
    for name, output in _outputs(asked.only):
        found[name] = output
        verdict = ""
        if wanted is not None:
            verdict = _verdict(output, wanted.get(name))
            other += verdict.startswith("OTHER")
        print(f"{output['digest'][:16]}  {name}  {verdict}".rstrip(), flush=True)
    if asked.save:
        asked.save.write_text(json.dumps(found))
    if wanted is not None:
        print(f"{len(found)} outputs, {other} with other bits")
    return int(other > 0)


def _verdict(output: dict[str, Any], wanted: dict[str, Any] | None) -> str:
    if wanted is None:
        return "new"
    if output["digest"] == wanted["digest"]:
        return "same"
    pairs = zip(output.get("values", []), wanted.get("values", []), strict=False)
    apart = max((abs(one - two) for one, two in pairs), default=float("nan"))
    return f"OTHER bits, values up to {apart:.2g} apart"


def _outputs(only: str) -> Iterator[tuple[str, dict[str, Any]]]:
    demo = Path(os.environ.get("PLIMSOLL_TEST_MODEL") or ".cache/plimsoll/SmolLM2-135M-Instruct.Q4_1.gguf")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if demo.exists():
            yield from _runs("demo", demo, only)
        for name, (architecture, overrides) in VARIANTS.items():
            place = root / name.replace(" ", "-").replace(",", "")
            if only in name or only.startswith(name):
                folder = make_checkpoint(place, architecture, tokenizer=True, **overrides)
                yield from _runs(name, folder, only)
                if name in FROM_GGUF:
                    file = make_gguf(place.with_suffix(".gguf"), make_model(architecture, **overrides))
                    yield from _runs(f"{name}, gguf", file, only)
        text = write_text(root / "text.txt")
        for name in QUANTIZED:
            if only not in f"{name}, quantized":
                continue
            architecture, overrides = VARIANTS[name]
            shape = {"hidden_size": 128, "intermediate_size": 192, "max_position_embeddings": 512}
            folder = make_checkpoint(root / f"source-{name[:5]}", architecture, **(shape | overrides))
            out = root / f"quantized-{name.replace(' ', '-')}"
            run_job(job_options(folder, out, text))
            digest = hashlib.sha256()
            for path in sorted(out.glob("*.safetensors")):
                digest.update(path.read_bytes())
            yield f"{name}, quantized", {"digest": digest.hexdigest()}
            yield from _runs(f"{name}, quantized, run", out, only, ("bfloat16", "w4a16"))


def _runs(
    name: str, path: Path, only: str, precisions: tuple[str, ...] = PRECISIONS
) -> Iterator[tuple[str, dict[str, Any]]]:
    for precision in precisions:
        for table in TABLES:
            title = f"{name}, {precision}, {table}"
            if only in title:
                yield title, _run(path, precision, table)


def _run(path: Path, precision: str, table: str) -> dict[str, Any]:
    """Log-probabilities of prompts, whole and in chunks, and of greedy decoding."""
    checkpoint = open_checkpoint(path)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    kernels = select(torch.device("cpu"), dtype, table)
    decoder = load_decoder(checkpoint, checkpoint.facts, kernels, dtype, precision=precision)  # type: ignore[arg-type]
    source = random.Random(3)
    lengths = [min(length, checkpoint.facts.max_position - 16) for length in LENGTHS]
    prompts = [[source.randrange(checkpoint.facts.vocab_size) for _ in range(length)] for length in lengths]
    digest, values = hashlib.sha256(), []
    with torch.inference_mode():
        for chunks in ((1_000_000,), (1, 7, 33, 2, 16)):
            for rows in prompt_logprobs(decoder, prompts, chunks=chunks, block_size=32, cache_dtype=dtype):
                digest.update(rows.float().contiguous().numpy().tobytes())
                values += rows.float().amax(1).tolist()
        runner = make_runner(decoder, prompts, 32, dtype, room=12)
        tokens, steps = greedy(runner, prompts, 12)
        digest.update(json.dumps(tokens).encode())
        for rows in steps:
            digest.update(rows.float().contiguous().numpy().tobytes())
    return {"digest": digest.hexdigest(), "values": values[:KEPT], "tokens": tokens}


if __name__ == "__main__":
    sys.exit(main())
