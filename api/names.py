"""What users call the wishes of a budget and of an engine: by fields of a manifest, options or arguments."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """What the user calls each wish, in front of its value: a manifest's fields, options or arguments."""

    precision: str = "precision"
    max_length: str = "context.maxLength"
    ratio: str = "kvCache.ratio"
    cache_bytes: str = "a cache of"
    max_batched_tokens: str = "serving.maxBatchedTokens"
    memory: str = "a device of"
    rope: str = "context.rope type dynamic, factor"
    int8_cache: str = "kvCache.precision int8"
    host_bytes: str = "kvCache.hostMemory"
    guesses: str = "serving.speculativeTokens"
    activations: str = "serving.activationPrecision"
    torch_rows: str = "serving.torchRows"


MANIFEST = Names()
MANIFEST_LINE = Names(memory="accelerator.memory")
OPTIONS = Names(
    "--dtype", "--session-len", "--cache-max-entry-count", "--kv-cache-bytes", "--max-prefill-token-num", "--memory",
    "--rope-scaling-factor", "--quant-policy 8", "--host-memory",
    "--speculative-tokens", "--activation-precision", "--torch-rows",
)  # fmt: skip
ARGUMENTS = Names(
    "precision", "max_model_len", "kv_ratio", "kv_cache_bytes", "max_batched_tokens", "memory",
    "rope_type dynamic, rope_factor", "cache_precision int8", "host_memory",
    "speculative_tokens", "activation_precision", "torch_rows",
)  # fmt: skip
