"""SmolLM2-135M-Instruct from its GGUF, against transformers reading the same file: one file, for loading it is slow."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.convert import convert_gguf
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.loader import load_decoder
from tests.checkpoint.test_convert import load
from tests.quantjob.test_streamed import streamed_logits
from tests.support.paging import greedy, make_runner, prompt_logprobs
from tests.support.tables import bfloat16_tables, float32_tables, table_name

STEPS = 32
QUESTION = [{"role": "user", "content": "What is the capital of France? Name 12 others."}]
TEXT = """A ship's Plimsoll line shows how far she may be loaded before she founders. Samuel Plimsoll, a member of
Parliament, fought for years to have it painted on every hull; the owners of coffin ships, over-insured and
under-manned, fought back. In 1876 the law was passed.
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
"""


@pytest.fixture(scope="module")
def prompts(smollm2_gguf: Path) -> list[list[int]]:
    token_ids = list(load_tokenizer(open_checkpoint(smollm2_gguf)).encode(TEXT))
    assert len(token_ids) > 90
    return [token_ids, token_ids[20:57], token_ids[40:41]]


@pytest.fixture(scope="module")
def continuations(smollm2_transformers: Any, prompts: list[list[int]]) -> list[tuple[list[int], list[Tensor]]]:
    """Per prompt but the longest, the tokens transformers would choose in float32, and their logits [vocab]."""
    return [transformers_greedy(smollm2_transformers, prompt, STEPS) for prompt in prompts[1:]]


@pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)
def test_every_position_is_within_1e_4(
    smollm2_gguf: Path, smollm2_transformers: Any, prompts: list[list[int]], kernels: Kernels
) -> None:
    checkpoint = open_checkpoint(smollm2_gguf)
    decoder = load_decoder(checkpoint, checkpoint.facts, kernels, torch.float32)
    with torch.inference_mode():
        wanted = [smollm2_transformers(torch.tensor([prompt])).logits[0].log_softmax(-1) for prompt in prompts]
    for chunks, block_size in (((1000,), 64), ((37, 11, 1), 16)):
        found = prompt_logprobs(decoder, prompts, chunks=chunks, block_size=block_size)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", bfloat16_tables(), ids=table_name)
def test_bfloat16_parts_from_float32_only_between_near_equals(
    smollm2_gguf: Path,
    prompts: list[list[int]],
    continuations: list[tuple[list[int], list[Tensor]]],
    kernels: Kernels,
) -> None:
    """vLLM's rule: at the first divergence each token is among the other's top five."""
    checkpoint = open_checkpoint(smollm2_gguf)
    decoder = load_decoder(checkpoint, checkpoint.facts, kernels, torch.bfloat16)
    runner = make_runner(decoder, prompts[1:], 64, torch.bfloat16, room=STEPS)
    found = zip(*greedy(runner, prompts[1:], STEPS), strict=True)
    for (tokens, logprobs), (theirs, their_logits) in zip(found, continuations, strict=True):
        parted = next((i for i in range(STEPS) if tokens[i] != theirs[i]), None)
        if parted is not None:
            assert theirs[parted] in logprobs[parted].topk(5).indices.tolist()
            assert tokens[parted] in their_logits[parted].topk(5).indices.tolist()


@torch.inference_mode()
def transformers_greedy(model: Any, prompt: list[int], steps: int) -> tuple[list[int], list[Tensor]]:
    """(token ids, logits [vocab] of each) of the likeliest continuation, end-of-text tokens included."""
    tokens: list[int] = []
    logits: list[Tensor] = []
    past, rows = None, torch.tensor([prompt])
    for _ in range(steps):
        output = model(rows, past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits.append(output.logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
        rows = torch.tensor([tokens[-1:]])
    return tokens, logits


def test_real_model_equals_transformers_own_reading_of_the_file(
    smollm2_gguf: Path, smollm2_transformers: Any, tmp_path: Path
) -> None:
    out = convert_gguf(smollm2_gguf, tmp_path / "out", "float32", max_shard_bytes=200 * 1024**2)
    assert len(list(out.glob("model-*-of-*.safetensors"))) == 3
    ours = load(out)
    theirs = smollm2_transformers
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    before, after = load_tokenizer(open_checkpoint(smollm2_gguf)), load_tokenizer(open_checkpoint(out))
    ids = after.apply_chat_template(QUESTION)
    assert ids == before.apply_chat_template(QUESTION)
    assert (
        ids == AutoTokenizer.from_pretrained(out).apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    )
    with torch.no_grad():
        assert torch.equal(ours(torch.tensor([ids])).logits, theirs(torch.tensor([ids])).logits)


def test_the_real_model_says_what_transformers_says(smollm2_gguf: Path, smollm2_transformers: Any) -> None:
    ids = torch.randint(0, 49152, (2, 60), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = smollm2_transformers(ids).logits.log_softmax(-1)
    found = streamed_logits(StreamedModel(open_checkpoint(smollm2_gguf)), ids).log_softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
