"""Predicted beside measured: the engine process's peak resident memory, over shapes, ratios, precisions and contexts.

    python -m benchmarks.memory [--ranks | --nodes] [--model FILE.gguf] [--output FILE.json]

Each configuration starts an engine process of its own and gives it the worst that the budget allows for: prompts that
fill the largest step, then as many running requests as it takes, all sampling with everything that sampling can cost,
by a grammar over a made-up vocabulary.
Measured is the process's high-water mark (VmHWM), loading included. Exits 1 if any lies above its prediction or more
than 5 % below it.

With `--ranks` models lie on several ranks, and each rank's process is held to its own line of the budget. The memory
that ranks share is counted once, on rank 0. With `--nodes` each rank is on a machine of its own, as far as its
processes know: they meet at loopback addresses, and sums go through gloo.
"""

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.group_kills import free_port
from plimsoll.api.budget import BATCHED_TOKENS, RUNS, budget
from plimsoll.api.facts import facts_from_config
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.quantity import format_bytes, parse_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.config import EngineConfig, engine_load
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.group.agent import Agent
from plimsoll.runtime.engine.group.curve import read_secret
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.engine.transport.client import EngineClient
from plimsoll.runtime.kernels.forecast import foreseen_device
from plimsoll.runtime.kernels.native_group import SEGMENT_NAME
from plimsoll.runtime.messages import EngineRequest
from tests.support.vocabularies import made_up_vocabulary

GIB = 1 << 30
TOLERANCE = 0.05

#: Llama-like shapes beside the real model: narrow and deep, wide and shallow, many key-value heads, a large vocabulary.
SHAPES = {
    "deep": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 24, "num_attention_heads": 8,
             "num_key_value_heads": 2, "vocab_size": 32000},
    "wide": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4, "num_attention_heads": 32,
             "num_key_value_heads": 8, "vocab_size": 32000},
    "vocab": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12,
              "num_key_value_heads": 12, "vocab_size": 151936},
}  # fmt: skip

#: shape; precision of weights and, where it is not theirs, of the cache, a host tier where there is one, rows of 8
#: bits, and the shape of a draft; ratio, total bytes, context, tokens of the largest step, running requests
CONFIGURATIONS = [
    ("smollm2", "bfloat16", 0.8, 2 * GIB, None, None, 64),
    ("smollm2", "bfloat16", 0.4, 2 * GIB, 4096, None, 64),
    ("smollm2", "float32", 0.8, 2 * GIB, 8192, None, 16),
    ("smollm2", "float32", 0.5, 3 * GIB, 2048, 512, 64),
    ("smollm2", "bfloat16", 0.9, 1 * GIB, 2048, 1024, 16),
    ("deep", "bfloat16", 0.8, 1 * GIB, 4096, None, 64),
    ("deep", "float32", 0.3, 2 * GIB, 2048, None, 64),
    ("deep", "bfloat16", 0.95, 3 * GIB, 8192, 4096, 32),
    ("wide", "bfloat16", 0.8, 2 * GIB, 2048, None, 64),
    ("wide", "float32", 0.6, 3 * GIB, 4096, None, 32),
    ("wide", "bfloat16", 0.2, 2 * GIB, 1024, 512, 8),
    ("vocab", "bfloat16", 0.8, 2 * GIB, 4096, None, 64),
    ("vocab", "float32", 0.5, 3 * GIB, 2048, None, 64),
    ("vocab", "bfloat16", 0.4, 2 * GIB, 8192, 4096, 16),
    ("smollm2", "w4a16", 0.8, 1 * GIB, 4096, None, 64),
    ("smollm2", "w8a16", 0.5, 2 * GIB, 4096, None, 64),
    ("wide", "w4a16", 0.3, 2 * GIB, 2048, None, 64),
    ("wide", "w8a16", 0.8, 2 * GIB, 1024, 512, 8),
    ("deep", "w4a16", 0.9, 1 * GIB, 2048, 1024, 16),
    ("smollm2", "bfloat16 int8", 0.8, 2 * GIB, 4096, None, 64),
    ("smollm2", "w4a16 int8", 0.5, 1 * GIB, 4096, None, 64),
    ("wide", "w8a16 int4", 0.8, 2 * GIB, 1024, 512, 8),
    ("deep", "bfloat16 int4", 0.8, 1 * GIB, 4096, None, 64),
    ("smollm2", "bfloat16 auto 256Mi", 0.4, 1 * GIB, 2048, 1024, 16),
    ("deep", "w4a16 int8 384Mi", 0.5, 1 * GIB, 2048, 1024, 16),
    ("smollm2", "w4a16 auto 0 int8", 0.8, 1 * GIB, 4096, None, 64),
    ("wide", "w8a16 int8 0 int8", 0.5, 2 * GIB, 2048, None, 64),
    ("deep", "w4a16 int4 0 int8", 0.8, 1 * GIB, 4096, 1024, 16),
    ("vocab", "w4a16 int4", 0.5, 2 * GIB, 4096, None, 64),
    ("wide", "bfloat16 int4 512Mi", 0.4, 2 * GIB, 2048, 512, 32),
    ("vocab", "w8a16 auto 256Mi int8", 0.6, 2 * GIB, 4096, None, 16),
    ("smollm2", "bfloat16 auto 0 auto smollm2", 0.6, 2 * GIB, 4096, None, 64),
    ("wide", "w8a16 int8 0 auto deep", 0.5, 2 * GIB, 2048, 512, 8),
]  # fmt: skip


#: shape, precision as above, ranks, ratio, bytes of each rank's line, context, tokens of the largest step, running
#: requests
RANKED = [
    ("smollm2", "bfloat16", 2, 0.8, 1 * GIB, 4096, None, 64),
    ("smollm2", "bfloat16", 3, 0.5, 1 * GIB, 8192, None, 32),
    ("smollm2", "w8a16", 4, 0.6, 1 * GIB, 4096, 1024, 64),
    ("smollm2", "w4a16", 3, 0.8, 1 * GIB, 4096, None, 64),
    ("smollm2-awq", "auto", 2, 0.4, 1 * GIB, 4096, None, 64),
    ("smollm2-awq", "auto", 4, 0.8, 1 * GIB, 2048, None, 32),
    ("deep", "w4a16", 2, 0.9, 1 * GIB, 2048, 1024, 16),
    ("deep", "bfloat16", 4, 0.5, 1 * GIB, 4096, None, 64),
    ("wide", "w8a16", 3, 0.3, 2 * GIB, 2048, 512, 8),
    ("wide", "bfloat16", 2, 0.8, 1 * GIB, 1024, 512, 16),
    ("smollm2", "bfloat16 auto 0 auto smollm2", 2, 0.6, 1 * GIB, 4096, None, 64),
    ("wide", "w8a16 int8 0 auto deep", 3, 0.5, 1 * GIB, 2048, 512, 8),
]  # fmt: skip
#: The same where each rank has a machine of its own.
GROUPED = [
    ("smollm2", "bfloat16", 2, 0.8, 1 * GIB, 4096, None, 64),
    ("smollm2", "w4a16", 4, 0.5, 1 * GIB, 4096, 1024, 32),
    ("deep", "bfloat16", 4, 0.5, 1 * GIB, 4096, None, 64),
    ("wide", "w8a16", 3, 0.3, 2 * GIB, 2048, 512, 8),
    ("smollm2", "bfloat16 auto 0 auto smollm2", 2, 0.6, 1 * GIB, 4096, None, 64),
]  # fmt: skip
RTN = ["--method", "rtn", "--w-group-size", "64", "--eval-samples", "0"]
MANY_TOKENS = 16
"""Of each of many answers."""
GRAMMAR = json.dumps({"grammars": [{"json_schema": {"type": "array", "items": {"type": "string", "maxLength": 40}}}]})
AWQ = "-awq"
"""Ends the name of a shape that is quantized before it is served."""


def make_checkpoint(folder: Path, shape: dict[str, int]) -> Path:
    """A random Llama-shaped checkpoint in bfloat16."""
    config = {
        **shape, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "hidden_act": "silu", "eos_token_id": 2, "bos_token_id": 1,
    }  # fmt: skip
    folder.mkdir(parents=True)
    tensors = {
        name: torch.randn(size, dtype=torch.float32).mul_(0.02).to(torch.bfloat16) if len(size) > 1
        else torch.ones(size, dtype=torch.bfloat16)
        for name, size in expected_tensors(facts_from_config(config)).items()
    }  # fmt: skip
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def quantized(source: str, folder: Path) -> Path:
    """`source` in groups of 64, by AWQ's layout, rounded to nearest."""
    command = [sys.executable, "-m", "plimsoll.cli.main", "quantize", source, "--work-dir", str(folder)]
    subprocess.run([*command, *RTN], check=True, stdout=subprocess.DEVNULL)
    return folder


def forecast(config: EngineConfig) -> list[int]:
    """Bytes that each rank is to take."""
    facts, total = open_checkpoint(Path(config.model)).facts, config.memory
    assert total is not None
    card = foreseen_device("cpu", total, None)
    draft = None if config.draft_model is None else open_checkpoint(Path(config.draft_model)).facts
    return [rank.in_use for rank in budget(facts, card, engine_load(config, facts, "cpu", draft), RUNS).ranks]


@contextlib.contextmanager
def machines(config: EngineConfig) -> Iterator[tuple[Membership | None, list[Agent]]]:
    """The leader's place in a group of `config.nodes`, and agents at all others; no place for one machine."""
    if config.nodes == 1:
        yield None, []
        return
    with tempfile.NamedTemporaryFile("w") as key:
        key.write(secrets.token_hex(32))
        key.flush()
        port = free_port()
        places = [
            Membership(
                nodes=config.nodes, ordinal=one, name=f"memory-{one}", address=f"127.0.0.{one + 1}", host="127.0.0.1",
                port=port, key_file=key.name,
            )
            for one in range(config.nodes)
        ]  # fmt: skip
        digest, secret = open_checkpoint(Path(config.model)).digest(), read_secret(key.name, "key")
        agents = [Agent(config, place, secret, digest) for place in places[1:]]
        try:
            yield places[0], agents
        finally:
            for agent in agents:
                agent.close()


async def measure(
    config: EngineConfig, vocab: int, membership: Membership | None = None, agents: Sequence[Agent] = ()
) -> dict[str, object]:
    """Predicted bytes and the peak that each process of an engine reached under the heaviest load, rank 0 first."""
    predicted = forecast(config)
    client = EngineClient(config, membership=membership)
    client.vocabulary = made_up_vocabulary(vocab)
    await client.start()
    try:
        await client.wait_ready(300)
        assert client.info is not None
        assert client.pid is not None
        others = [one.process.pid for agent in agents if agent.crew for one in agent.crew.processes]
        pids = [client.pid, *(others or [rank.pid for rank in client.info.ranks[1:]])]
        draw = random.Random(0)
        # A prompt that fills a whole step; a longer one would take time and no more memory.
        longest = min(client.info.model_len - 40, (config.max_batched_tokens or BATCHED_TOKENS["cpu"]) + 64)
        await asyncio.gather(
            *(_run(client, f"long{i}", [draw.randrange(3, vocab) for _ in range(longest)], 2) for i in range(1))
        )
        await asyncio.gather(
            *(
                _run(client, f"many{i}", [draw.randrange(3, vocab) for _ in range(20)], MANY_TOKENS)
                for i in range(config.max_running)
            )
        )
        if config.draft_model is not None:
            # A text that the draft runs in parts of the largest size, and guesses for as many as there may be.
            greedy = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
            for count, length in ((1, longest), (2, 40)):
                prompts = [[draw.randrange(3, vocab) for _ in range(length)] for _ in range(count)]
                await asyncio.gather(*(_ask(client, f"{length}-{i}", one, greedy) for i, one in enumerate(prompts)))
            assert client.stats.guesses > 0
        info = client.info
        return {
            "predicted": predicted,
            "total": info.predicted["total"],
            "terms": info.predicted,
            "observed": info.observed,
            "measured": [_peak(pid) - (_shared(pid) if rank else 0) for rank, pid in enumerate(pids)],
            "kernels": info.kernels,
        }
    finally:
        await client.close()


async def _run(client: EngineClient, name: str, prompt: list[int], tokens: int) -> None:
    params = SamplingParams(
        max_tokens=tokens, ignore_eos=True, temperature=1.2, top_p=0.999, min_p=0.0, repetition_penalty=1.1,
        presence_penalty=0.3, frequency_penalty=0.1, logprobs=20, logit_bias={5: 1.0}, seed=1,
        grammar=None if tokens < MANY_TOKENS else GRAMMAR,
    )  # fmt: skip
    await _ask(client, name, prompt, params)


async def _ask(client: EngineClient, name: str, prompt: list[int], params: SamplingParams) -> None:
    request = EngineRequest(request_id=name, prompt_token_ids=prompt, params=params, arrival=time.monotonic())
    async for output in client.generate(request):
        if output.error:
            raise RuntimeError(output.error)


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's peak memory")


def _shared(pid: int) -> int:
    """Bytes of the ranks' common memory that lie in this process too."""
    found = Path(f"/proc/{pid}/smaps").read_text().split(SEGMENT_NAME)
    return sum(int(part.split("Rss:")[1].split()[0]) * 1024 for part in found[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/plimsoll/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--ranks", action="store_true", help="models over several ranks")
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of some configurations")
    parser.add_argument("--nodes", action="store_true", help="models over several ranks, each on a machine of its own")
    options = parser.parse_args()
    np.random.seed(0)
    torch.manual_seed(0)
    results: list[dict[str, object]] = []
    worst = 0
    alone = [(shape, name, 1, *rest) for shape, name, *rest in CONFIGURATIONS]
    chosen = GROUPED if options.nodes else RANKED if options.ranks else alone
    print(" # shape       precision                    ranks ratio context   predicted    measured  measured/predicted")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: str(make_checkpoint(Path(scratch) / name, shape)) for name, shape in SHAPES.items()}
        folders["smollm2"] = options.model
        for index, (shape, precision, ranks, ratio, total, context, batched, running) in enumerate(chosen):
            if options.only is not None and index not in options.only:
                continue
            plain = shape.removesuffix(AWQ)
            if shape not in folders:
                folders[shape] = str(quantized(folders[plain], Path(scratch) / shape))
            words = precision.split()
            weights, held, tier, rows, draft = words + ["auto", "0", "auto", ""][len(words) - 1 :]
            guessing = {"draft_model": folders[draft], "speculative_tokens": 4} if draft else {}
            config = EngineConfig(
                model=folders[shape], precision=weights, cache_precision=held, activation_precision=rows,
                tensor=ranks, nodes=ranks if options.nodes else 1, device="cpu", memory=total,
                kv_ratio=ratio, max_model_len=context, max_running=running,
                host_memory=0 if tier == "0" else parse_bytes(tier),
                **({} if batched is None else {"max_batched_tokens": batched}), **guessing,
            )  # fmt: skip
            vocab = SHAPES.get(plain, {"vocab_size": 49152})["vocab_size"]
            with machines(config) as (place, agents):
                found = asyncio.run(measure(config, vocab, place, agents))
            pairs = list(zip(found["predicted"], found["measured"], strict=True))  # type: ignore[call-overload]
            bad = [not 1 - TOLERANCE <= seen / wanted <= 1 for wanted, seen in pairs]
            worst += any(bad)
            results.append({"shape": shape, "precision": precision, "ratio": ratio, "context": context, **found})
            for rank, (wanted, seen) in enumerate(pairs):
                head = f"{index:>2} {shape:11} {precision:28} {ranks:5} {ratio:5.2f} {context or 'all':>7}"
                print(
                    f"{head if rank == 0 else '':60} {format_bytes(wanted):>11} {format_bytes(seen):>11}  "
                    f"{seen / wanted:.3f}{'  <-- outside' if bad[rank] else ''}", flush=True,
                )  # fmt: skip
    if options.output:
        options.output.write_text(json.dumps(results, indent=1))
    print(f"{len(results) - worst} of {len(results)} within {TOLERANCE:.0%} below their prediction")
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
