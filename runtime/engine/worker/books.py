"""Fresh books of an engine that has loaded: nothing queued, nothing cached."""

from plimsoll.api.model import ModelFacts
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.block_manager import BlockManager
from plimsoll.runtime.engine.core.copy_times import CopyTimes
from plimsoll.runtime.engine.core.host_blocks import HostBlocks
from plimsoll.runtime.engine.core.layer_work import LayerWork
from plimsoll.runtime.engine.core.pace import Pace
from plimsoll.runtime.engine.core.requests import RequestReader
from plimsoll.runtime.engine.core.scheduler import Scheduler
from plimsoll.runtime.engine.worker.loading import Loaded

ATTENTION = 2.0
"""What a multiplication of attention costs, over one with a matrix (8-bit codes, an AMD EPYC of Zen 5)."""


def new_pace(config: EngineConfig, loaded: Loaded) -> Pace | None:
    """A pace that has measured nothing; None where prompts are not paced."""
    return Pace(layer_work(loaded.facts)) if config.paced else None


def new_scheduler(config: EngineConfig, loaded: Loaded, copy_times: CopyTimes, pace: Pace | None) -> Scheduler:
    """A scheduler of all blocks of both tiers.

    Args:
        copy_times: what copies between the tiers take; kept when the books are made again.
        pace: what steps take; kept as well.
    """
    cache, host = loaded.runner.cache, loaded.runner.host
    slots = None if host is None else HostBlocks(host.num_blocks, copy_times)
    return Scheduler(
        BlockManager(cache.num_blocks, cache.block_size, config.prefix_caching, slots),
        max_batched_tokens=loaded.plan.max_batched_tokens,
        max_running=config.max_running,
        pace=pace,
        max_queued_requests=config.max_queued_requests,
        max_queued_tokens=config.max_queued_tokens,
        guessing=loaded.guessing(config.speculative_tokens),
    )


def new_reader(config: EngineConfig, loaded: Loaded) -> RequestReader:
    """What checks requests, and draws seeds from the first one on."""
    return RequestReader(
        vocab_size=loaded.facts.vocab_size,
        model_len=loaded.plan.model_len,
        eos_token_ids={*loaded.facts.eos_token_ids, *config.end_token_ids},
        seed=config.seed,
        guessing=loaded.guessing(config.speculative_tokens),
    )


def layer_work(facts: ModelFacts) -> LayerWork:
    """What a row costs each layer of a model: multiplications with matrices, and with the keys and values before it."""
    heads, kv_heads, dim, hidden = facts.num_heads, facts.num_kv_heads, facts.head_dim, facts.hidden_size
    matrices = 2 if facts.layers[0].gated else 1
    products = hidden * dim * (2 * heads + 2 * kv_heads) + (matrices + 1) * hidden * facts.intermediate_size
    return LayerWork([spec.window for spec in facts.layers], products / (2 * heads * dim * ATTENTION))
