"""Text sampled from the model itself, by our own engine: calibration without any data.

The idea is Williams, Chrysostomou and Aletras, "Self-calibration for Language Model Quantization and Pruning", NAACL
2025, arXiv 2410.17170: what a model writes when nobody asks it anything is near to what it was trained on. Texts start
at the model's start token; every second one goes on with a token drawn from the whole vocabulary, so that they do not
all begin alike. The first tokens are drawn at a higher temperature, which spreads the subjects; the rest at 1, the
model's own distribution. A text that ends is followed by the next: they are packed as those of a file are.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from plimsoll.api.errors import DoesNotFitError, PlimsollError
from plimsoll.api.job_budget import SAMPLED_AT_ONCE
from plimsoll.api.sizes import block_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.quantjob.data import Tokens, tokens_of
from plimsoll.runtime.llm import LLM
from plimsoll.runtime.messages import SamplingParams

#: Tokens at the start of a text that are drawn at the higher temperature, and that temperature.
OPENING, OPENING_TEMPERATURE = 8, 1.3
#: Tokens of a block of the cache.
BLOCK = 64


def self_tokens(
    model: Path,
    sets: Sequence[tuple[int, int]],
    length: int,
    *,
    memory: int | None = None,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
    field: str = "--calib-dataset",
) -> list[Tokens]:
    """Windows int64 [samples, length] of text that the model at `model` writes, for each (samples, seed) of `sets`.

    The same for the same seed, on any number of threads. The model is whole in memory meanwhile, and `SAMPLED_AT_ONCE`
    texts of `length` tokens beside it.

    Args:
        memory: bytes that the process may take; None for what the machine or the container has.
        threads: None follows the container's limit.
        progress: told the share of tokens that are there.

    Raises:
        DoesNotFitError: the model does not fit, rounded to 4 bits either; what to do instead is named.
        CheckpointError: it cannot be read.
    """
    facts = open_checkpoint(model).facts
    cache = SAMPLED_AT_ONCE * -(-length // BLOCK) * block_bytes(facts, BLOCK, "bfloat16")
    options = {"kv_cache_bytes": cache, "block_size": BLOCK, "max_running": SAMPLED_AT_ONCE, "threads": threads}
    try:
        llm = LLM(model, memory=memory, max_model_len=length, max_batched_tokens=max(length, BLOCK), **options)
    except DoesNotFitError as error:
        raise DoesNotFitError(
            f"sampling text needs the whole model in memory once, which {error.message}", field=field, value="self",
            ways=("a dataset in place of self, which needs one layer in memory", *error.ways),
        ) from None  # fmt: skip
    total = sum(samples for samples, _ in sets) * length
    before, found = 0, []
    with llm:
        for samples, seed in sets:
            stream = _stream(llm, samples * length, length, seed, _told(progress, before, total))
            before += samples * length
            source = f"self, sampled in {llm.engine.ready.precision} with seed {seed}"
            found.append(tokens_of(np.array(stream, dtype=np.int64).reshape(samples, length), source))
    progress(1.0)
    return found


def _told(progress: Callable[[float], None], before: int, total: int) -> Callable[[int], None]:
    return lambda count: progress((before + count) / total)


def _stream(llm: LLM, wanted: int, length: int, seed: int, progress: Callable[[int], None]) -> list[int]:
    """The first `wanted` tokens of the texts, packed."""
    stream: list[int] = []
    first = 0
    while len(stream) < wanted:
        progress(len(stream))
        # How many texts a round has follows from what was written alone, so that the same texts come again.
        count = min(4 * SAMPLED_AT_ONCE, max(SAMPLED_AT_ONCE, -(-(wanted - len(stream)) // length)))
        for text in _texts(llm, range(first, first + count), length, seed):
            stream += text
        first += count
    return stream[:wanted]


def _texts(llm: LLM, numbers: range, length: int, seed: int) -> list[list[int]]:
    """Texts of these numbers, each of at most `length` tokens, with the end token where they came to an end."""
    opening = min(OPENING, length - 2)
    prompts = [_start(llm.tokenizer, llm.engine.facts.vocab_size, number, seed) for number in numbers]
    for begins, temperature, tokens in ((True, OPENING_TEMPERATURE, opening), (False, 1.0, length - opening - 2)):
        params = [
            SamplingParams(
                temperature=temperature,
                max_tokens=tokens,
                ignore_eos=begins,
                seed=int.from_bytes(random.Random(f"{seed}/{number}/{begins}").randbytes(4), "big"),
            )
            for number in numbers
        ]
        if tokens < 1:
            continue
        for prompt, result in zip(prompts, llm.generate(prompts, params), strict=True):
            answer = result.outputs[0]
            if answer.error is not None:
                raise PlimsollError(f"the model cannot write text: {answer.error}", field=str(llm.engine.config.model))
            prompt += answer.token_ids
            if not begins and answer.finish_reason == "stop":
                prompt += llm.tokenizer.eos_token_ids[:1]
    return prompts


def _start(tokenizer: Tokenizer, vocab_size: int, number: int, seed: int) -> list[int]:
    ends = tokenizer.eos_token_ids[:1]
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else list(ends)
    draw = random.Random(f"{seed}/{number}")
    if number % 2 or not start:
        token = draw.randrange(min(vocab_size, tokenizer.vocab_size))
        while token in tokenizer.special_ids:
            token = draw.randrange(min(vocab_size, tokenizer.vocab_size))
        start = [*start, token]
    return start
