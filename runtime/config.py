"""How one engine and its server are set up. `serve`, `up` and `LLM` all end here, so they cannot drift apart."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

import msgspec

from plimsoll.api.budget import BATCHED_TOKENS, Load
from plimsoll.api.deployment import ModelDeployment
from plimsoll.api.device import DeviceKind
from plimsoll.api.errors import SpecError
from plimsoll.api.load import refuse_not_run_yet, sharing, stretched
from plimsoll.api.model import ModelFacts
from plimsoll.api.names import ARGUMENTS, MANIFEST_LINE, OPTIONS, Names
from plimsoll.api.precision import ActivationPrecision, CachePrecision, Precision

Count = Annotated[int, msgspec.Meta(ge=1)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the engine process. Sizes in bytes, lengths in tokens."""

    model: str
    """Path of a Hugging Face folder or a GGUF file on this machine."""
    precision: str = "auto"
    """auto, bfloat16, float16, float32, w8a16 or w4a16: how weights are held (float16 only on CUDA). auto holds a
    quantized checkpoint, and a GGUF in Q4, Q5, Q6 or Q8 blocks, as it is stored, and another in the first of
    bfloat16, w8a16 and w4a16 that fits."""
    cache_precision: CachePrecision = "auto"
    """auto, int8 or int4: how keys and values are held. auto is as weights that are no codes, in 16
    or 32 bits, or int8 where the cache would otherwise hold fewer tokens than `max_model_len`."""
    activation_precision: ActivationPrecision = "auto"
    """int8 or bfloat16: what rows of activations become where they meet weights of 4 or 8 bits, on a CPU. auto is
    int8 on processors with AVX512-VNNI or AVX-VNNI and without AMX, else bfloat16."""
    tensor: Count | Literal["auto"] = 1
    """Ranks that hold the model together, each a process of this machine; `LLM` also takes `tensor_parallel_size`.
    More than 1 runs on CPUs only. auto takes the fewest that hold the model, 1 to 8 on a CPU with `memory`, else 1."""
    nodes: Count = 1
    """Machines, or pods, that the ranks are spread over evenly. On one machine all ranks are processes of it."""
    device: str = "auto"
    """cpu, cuda, cuda:0; auto takes CUDA where there is one."""
    memory: Count | None = None
    """The budget's total; None reads the container's limit (CPU) or the card's memory."""
    kv_ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.8
    """Share of what is free after weights, workspace and context that becomes KV cache."""
    kv_cache_bytes: Count | None = None
    """Absolute size of the cache; overrides `kv_ratio`."""
    host_memory: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Bytes of host memory, of each rank, for a second tier of cache blocks: what leaves the cache is copied there, and
    back when it is needed. On a CPU it counts against `memory`. 0 has no second tier."""
    block_size: int = 64
    prefix_caching: bool = True
    max_model_len: Count | None = None
    """Longest prompt + answer; None takes what the model was trained for, or what the cache holds if that is less."""
    rope_type: str | None = None
    """Overrides the checkpoint's scaling: linear, dynamic, yarn, llama3."""
    rope_factor: float | None = None
    max_batched_tokens: Count | None = None
    """Tokens of the largest step; None takes the device's default, 8192 on a GPU and 2048 on a CPU."""
    paced: bool = False
    """Prompts run beside streams in such parts that these do not stutter (`core/pace.py`). An endpoint's do."""
    max_running: Count = 64
    max_queued_requests: Count = 256
    max_queued_tokens: Count = 1_000_000
    threads: Count | None = None
    """CPU threads; None follows the container's CPU limit."""
    kernels: str = "auto"
    """auto, native or torch."""
    names: Literal["arguments", "options", "manifest"] = "arguments"
    """Whose names a refusal uses for what it suggests to change: these, those of `serve` or a manifest's fields."""
    end_token_ids: tuple[int, ...] = ()
    """More ids that end an answer than the checkpoint's configurations name; set by the process with the tokenizer."""
    torch_rows: Count | None = None
    """Products of at least so many rows go through torch's bfloat16: perhaps quicker prompts, and answers that
    depend on load. None is never, unless the environment's PLIMSOLL_TORCH_ROWS says otherwise."""
    deterministic: bool = False
    """Refuse to start where the kernels cannot promise that answers do not depend on load. It changes no kernel."""
    speculative_tokens: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
    """Tokens that a step guesses of a request, from what its text has said before or by `draft_model`; no answer
    changes. 0 guesses none."""
    draft_model: str | None = None
    """Path of a smaller model with the same tokens, a Hugging Face folder or a GGUF file, which guesses
    `speculative_tokens`."""
    seed: int = 0
    contents: str | None = None
    """Fingerprint that the checkpoint's files must have (`checkpoint.contents`); None takes what is there."""
    hang_timeout: Annotated[float, msgspec.Meta(ge=0.1)] = 20.0
    """Seconds without a sign of life after which an engine that serves is killed and started again. After half of them
    it is not ready. The engine gives several signs a second, also in the middle of a long step."""

    @property
    def most_sequences(self) -> int:
        """Sequences that an idle engine takes at once: those that run, and those that wait."""
        return self.max_running + self.max_queued_requests


#: Other spellings of options: vLLM's.
SPELLINGS = {"tensor_parallel_size": "tensor"}


def spelled(field: str | None, options: Mapping[str, Any]) -> str | None:
    """What a user who wrote `options` calls `field` of an EngineConfig."""
    return next((theirs for theirs, ours in SPELLINGS.items() if ours == field and theirs in options), field)


def engine_config(model: Path, **options: Any) -> EngineConfig:
    """An EngineConfig from what a user wrote. Raises SpecError for a name that is none, and for a wrong value."""
    written = dict(options)
    for theirs, ours in SPELLINGS.items():
        if theirs in options and ours in options:
            raise SpecError(f"means the same as {ours}", field=theirs, value=options[theirs], fix="Give one of the two")
        if theirs in options:
            options[ours] = options.pop(theirs)
    if "kv_ratio" in options and options.get("kv_cache_bytes") is not None:
        raise SpecError(
            "contradicts kv_cache_bytes, which is the whole size", field="kv_ratio", value=options["kv_ratio"],
            fix="Leave one",
        )  # fmt: skip
    for name in options:
        if name not in EngineConfig.__struct_fields__:
            close = difflib.get_close_matches(name, EngineConfig.__struct_fields__, 1)
            fix = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(EngineConfig.__struct_fields__)}"
            raise SpecError("unknown option", field=name, fix=fix)
    try:
        return msgspec.convert({"model": str(model), **options}, EngineConfig)
    except msgspec.ValidationError as error:
        wanted, _, field = str(error).replace("`", "").partition(" - at $.")
        wanted = wanted.partition(", got")[0].replace("null", "None")
        for theirs, ours in (("Expected", "must be"), (" >=", ", at least"), (" >", ", above"), (" <=", ", at most")):
            wanted = wanted.replace(theirs, ours)
        if "enum value" in wanted:
            wanted = f"must be one of {', '.join(_choices(get_type_hints(EngineConfig)[field]))}"
        raise SpecError(wanted, field=spelled(field, written), value=options.get(field)) from None


def _choices(literal: Any) -> list[str]:
    """Values of a Literal or of a union of several, `auto` first."""
    found = [one for part in get_args(literal) for one in (get_args(part) or (part,))]
    return sorted(map(str, found), key=lambda one: one != "auto")


def names_of(config: EngineConfig) -> Names:
    """What refusals call the options of `config`."""
    return {"arguments": ARGUMENTS, "options": OPTIONS, "manifest": MANIFEST_LINE}[config.names]


#: Fields that the budget and the engine refuse under one name, in the words of arguments and of options.
_FIELDS = {
    "arguments": {
        "spec.kvCache.blockSize": "block_size",
        "spec.parallelism.tensor": "tensor",
        "spec.kvCache.hostMemory": "host_memory",
        "spec.serving.draft": "draft_model",
        "spec.serving.deterministic": "deterministic",
        "spec.serving.activationPrecision": "activation_precision",
        "spec.serving.torchRows": "torch_rows",
        "spec.serving.maxBatchedTokens": "max_batched_tokens",
        "spec.serving.maxRunningRequests": "max_running",
        "spec.context.maxLength": "max_model_len",
        "spec.kvCache.ratio": "kv_ratio",
        "spec.precision": "precision",
        "spec.parallelism.nodes": "nodes",
    },
    "options": {
        "spec.kvCache.blockSize": "--cache-block-seq-len",
        "spec.serving.deterministic": "--deterministic",
        "spec.serving.activationPrecision": "--activation-precision",
        "spec.serving.torchRows": "--torch-rows",
        "spec.serving.maxBatchedTokens": "--max-prefill-token-num",
        "spec.serving.maxRunningRequests": "--max-batch-size",
        "spec.context.maxLength": "--session-len",
        "spec.kvCache.ratio": "--cache-max-entry-count",
        "spec.precision": "--dtype",
        "spec.parallelism.nodes": "--nnodes",
        "spec.parallelism.tensor": "--tp",
        "spec.kvCache.hostMemory": "--host-memory",
        "spec.serving.draft": "--draft-model",
        "tensor": "--tp",
        "device": "--device",
    },
}


def field_of(config: EngineConfig, field: str | None) -> str | None:
    """What the user calls `field` of a refusal."""
    return _FIELDS.get(config.names, {}).get(field or "", field)


def engine_load(config: EngineConfig, facts: ModelFacts, kind: DeviceKind, draft: ModelFacts | None = None) -> Load:
    """What `config` wants of a device of this kind: of a deployment's, the same as `load_of`.

    Args:
        draft: of `config.draft_model`.

    Raises SpecError where the model cannot take positions as far as `max_model_len`.
    """
    names = names_of(config)
    wish = Load(
        precision=cast(Precision, config.precision),
        cache_precision=config.cache_precision,
        tensor=config.tensor,
        nodes=config.nodes,
        ratio=config.kv_ratio,
        cache_bytes=config.kv_cache_bytes,
        host_bytes=config.host_memory,
        block_size=config.block_size,
        max_length=config.max_model_len,
        max_batched_tokens=config.max_batched_tokens or BATCHED_TOKENS[kind],
        max_running=config.max_running,
        activation_precision=config.activation_precision,
        draft=draft,
    )
    wish = sharing(wish) if config.memory is None else wish
    return stretched(wish, facts, config.rope_type, config.rope_factor, names.max_length, names.rope)


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the HTTP server."""

    served_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys_file: str | None = None
    """One key a line; blank lines and `#` comments ignored. Never given on the command line or the environment."""
    request_timeout: float = 600.0
    restart_timeout: float = 30.0
    """Seconds that requests wait for an engine that is being started again, while nothing of their answer was sent."""
    drain_timeout: float = 120.0
    max_body_bytes: int | None = None
    """Of one request's body; None follows the model's context (`server.body_size`)."""
    max_bodies_bytes: int | None = None
    """Of the bodies of all requests together, until they have been read; None is a multiple of `max_body_bytes`."""
    max_connections: int = 1024
    max_n: int = 16
    max_prompts: int = 64
    """Prompts in one /v1/completions request."""
    max_logprobs: int = 20
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """fcfs serves requests in order of arrival; priority in that of their field `priority`, lower numbers first."""
    strict: bool = False
    """Refuse a request for more tokens than the context leaves; else its answer is cut to that."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose web pages may use the server, `*` for all. Empty: pages of this machine, or all where keys are."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in Host, in lower case and without a port, that a server without keys answers to besides `localhost`, `*`
    for all. Empty: no other where it listens on loopback, and any where it listens on a network."""
    tool_parser: str = "auto"
    """How the model writes the functions that it calls (`api.parsers`); none leaves calls in the text."""
    reasoning_parser: str = "auto"
    """How the model marks its thoughts; none leaves them in the text."""
    chat_template: str | None = None
    """Path of a Jinja file that replaces the checkpoint's."""


def from_deployment(
    deployment: ModelDeployment, path: Path, *, draft: Path | None = None, host: str = "127.0.0.1", port: int = 8000
) -> tuple[EngineConfig, ServerConfig]:
    """What a manifest means for one process on this machine.

    Args:
        deployment: a parsed manifest.
        path: its `model.source` on this machine.
        draft: its `serving.draft.source` on this machine, where it has one.
        host: address to listen on.
        port: 0 takes a free one.

    Raises NotRunYetError for what the budget can size and this version does not run.
    """
    spec = deployment.spec
    refuse_not_run_yet(spec)
    kind = "cpu" if spec.accelerator.resource == "cpu" else "cuda"
    rope = spec.context.rope
    engine = EngineConfig(
        model=str(path),
        precision=spec.precision,
        cache_precision=spec.kv_cache.precision,
        tensor=spec.parallelism.tensor,
        nodes=spec.parallelism.nodes,
        device=kind,
        memory=spec.accelerator.memory,
        kv_ratio=spec.kv_cache.ratio,
        host_memory=spec.kv_cache.host_memory or 0,
        block_size=spec.kv_cache.block_size,
        prefix_caching=spec.kv_cache.prefix_caching,
        max_model_len=spec.context.max_length,
        rope_type=None if rope is None else rope.type,
        rope_factor=None if rope is None else rope.factor,
        max_batched_tokens=spec.serving.max_batched_tokens,
        paced=True,
        max_running=spec.serving.max_running_requests,
        max_queued_requests=spec.serving.max_queued_requests,
        max_queued_tokens=spec.serving.max_queued_tokens,
        threads=spec.pod.cpu,
        names="manifest",
        torch_rows=spec.serving.torch_rows,
        activation_precision=spec.serving.activation_precision,
        deterministic=spec.serving.deterministic,
        speculative_tokens=spec.serving.speculative_tokens,
        draft_model=None if draft is None else str(draft),
        hang_timeout=spec.serving.hang_timeout,
    )
    server = ServerConfig(
        served_name=deployment.served_name,
        host=host,
        port=port,
        api_keys_file=spec.serving.api_keys_file,
        request_timeout=spec.serving.request_timeout,
        restart_timeout=spec.serving.restart_timeout,
        scheduling_policy=spec.serving.scheduling_policy,
        tool_parser=spec.serving.tool_parser,
        reasoning_parser=spec.serving.reasoning_parser,
        drain_timeout=spec.rollout.drain_timeout,
    )
    return engine, server
