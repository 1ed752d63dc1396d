"""What crosses between client, server and engine: plain messages, encoded by msgspec.

Names follow the field (vLLM, OpenAI) so that readers know them already.
"""

from typing import Literal

import msgspec

from plimsoll.runtime.engine.core.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error", "rejected"]


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """One token's log-probability (natural log) and its rank in the vocabulary, 1 being the likeliest; 0 where it was
    not counted."""

    token_id: int
    logprob: float
    rank: int


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The chosen token first, then the k likeliest in order (the chosen one may be among them)."""

    chosen: Logprob
    top: list[Logprob]


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, tag="request"):
    """One sequence to generate. The front end expands n > 1 into n of these (`params.n` is 1 here)."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival: float
    """time.monotonic() of this machine when the request arrived."""


class AbortRequests(msgspec.Struct, frozen=True, tag="abort"):
    """End these requests; their clients have gone or have enough."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Stop at once; the front end has drained already."""


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True, tag="vocabulary"):
    """The tokenizer's tokens, which grammars are about. An engine gets it before its first request with a
    grammar or a thought's budget."""

    tokens: bytes
    """The bytes of all tokens, one after the other, in the order of their ids."""
    sizes: list[int]
    """Bytes of each."""
    special_ids: list[int]
    """Control tokens: no text of a grammar matches them."""


ToEngine = EngineRequest | AbortRequests | Vocabulary | Shutdown


class TokenOutput(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one step produced for one request. The last one carries `finish_reason`."""

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    """One per token in `token_ids`, when asked for."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """Once, with the first output: one per prompt token, the first None."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The token that ended it, when one did. It is not in `token_ids` unless it was an ordinary token."""
    stop_logprobs: TokenLogprobs | None = None
    """Of `stop_token_id`, where it is not in `token_ids` and log-probabilities were asked for."""
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache; set with the first output."""
    error: str | None = None
    """Why, for `error` and `rejected`: words for a human, no traceback."""
    busy: bool = False
    """Rejected because the queue is full: the same request may be taken later."""


class RequestTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, sent when a request finishes; feeds the histograms of /metrics."""

    request_id: str
    queue: float
    prefill: float
    decode: float


class EngineStats(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Counters since the engine started, and gauges of now."""

    tick: int = 0
    """Turns of the loop, also when idle: what /health watches."""
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    """Neither in use nor cached."""
    blocks_cached: int = 0
    """Warm and unused: taken when needed."""
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Of those, tokens found."""
    host_blocks_used: int = 0
    """Of the host tier: blocks that are known."""
    host_hits: int = 0
    """Of `prefix_hits`, tokens that only the host tier had."""
    host_saved: int = 0
    """Blocks copied to the host tier."""
    host_loaded: int = 0
    """Blocks copied back, those of preempted requests included."""
    preemptions: int = 0
    guesses: int = 0
    """Tokens that were guessed, and run before they were known."""
    guesses_kept: int = 0
    """Of those, tokens that came."""
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    last_step_tokens: int = 0
    """Tokens that the last step ran through the model."""
    last_step_counted: int = 0
    """Tokens of the last step as vLLM counts them: those generated, and with a request's first one its whole prompt but
    for what came from the prefix cache."""
    device_peak: int = 0
    """Most bytes of the card that were ever reserved, as of when the engine was last idle. 0 on a CPU: there the kernel
    keeps the process's own."""
    peaks: dict[int, int] = {}
    """Most resident bytes by rank, of ranks on other machines."""


class StepOutputs(msgspec.Struct, kw_only=True, tag="step"):
    """What one turn of the loop produced, and the counters after it."""

    outputs: list[TokenOutput]
    stats: EngineStats
    finished: list[RequestTimes] = []


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="heartbeat"):
    """A sign of life, several times a second, also while a step runs."""

    progress: int
    """Layers, heads and turns of the loop done so far: unchanged where the loop stands still."""


class RankLoad(msgspec.Struct, frozen=True, array_like=True):
    """How far one rank has loaded its share of the weights."""

    rank: int
    done_bytes: int
    total_bytes: int
    seconds: float


class LoadProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Loading, as it goes: `phase` is one of `weights`, `cache`, `warmup`."""

    phase: str
    done_bytes: int
    total_bytes: int
    seconds: float
    ranks: list[RankLoad] = []
    """Of `weights`, where there are several ranks; the bytes above are theirs together."""


class Determinism(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an answer depends on what else runs, by the kernels' promise and the self-test at start-up."""

    deterministic: bool
    """A row has the same bits alone, in a batch and in pieces."""
    digest: str = ""
    """`sha256:…` over the results of the self-test: equal where the arithmetic is. Empty where there was none."""
    reason: str = ""
    """Why it is not deterministic; else empty."""


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine has loaded and has generated a token."""

    model_len: int
    num_blocks: int
    block_size: int
    precision: str
    """Of weights."""
    cache_dtype: str
    """Of keys and values in the cache: `int8`, `int4`, or floats as torch names them, such as `bfloat16`."""
    predicted: dict[str, int]
    """Bytes by budget term: total, context, weights, workspace, kvCache, headroom; draft where there is a draft
    model, hostCache where a host tier lies on the line."""
    observed: dict[str, int]
    """Bytes: weights, kvCache, resident (of the engine process), draft where there is a draft model, hostCache where
    there is a host tier."""
    startup: dict[str, float]
    """Seconds by phase: load, cache, warmup."""
    kernels: str
    """Which table of kernels runs, e.g. `torch` or `native-avx2`: with the instructions that the native one uses."""
    determinism: Determinism
    """Of all ranks together."""
    threads: int
    """Of one rank."""
    host_blocks: int = 0
    """Blocks of the host tier."""
    ranks: list["RankReady"] = []
    """What each rank observed, rank 0 first, where there are several."""


class RankReady(msgspec.Struct, frozen=True, kw_only=True, tag="rank"):
    """One rank of a tensor-parallel group has loaded its share."""

    rank: int
    pid: int
    """0 for a rank of another machine."""
    num_blocks: int
    """As its own budget has it: the same on every rank."""
    weights: int
    """Bytes."""
    kv_cache: int
    """Bytes."""
    resident: int
    """Bytes of the process."""
    load: float
    """Seconds."""
    determinism: Determinism
    host_blocks: int = 0
    """Of its host tier: the same on every rank."""

    @property
    def loaded(self) -> LoadProgress:
        """The last report of its weights."""
        return LoadProgress(phase="weights", done_bytes=self.weights, total_bytes=self.weights, seconds=self.load)


class RankBeat(msgspec.Struct, frozen=True, tag="alive"):
    """A rank lives; several times a second."""


class GroupWaiting(msgspec.Struct, frozen=True, kw_only=True, tag="waiting"):
    """The group cannot begin yet. Sent again every second, so that waiting counts as moving."""

    pods: list[str]
    """Names of those that have not joined; empty once all have."""


class PodLeaving(msgspec.Struct, frozen=True, kw_only=True, tag="leaving"):
    """A pod of the group is about to stop: finish what runs, then end the group."""

    pod: str


class EngineFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The engine cannot start; it exits after sending this."""

    error: str


FromEngine = StepOutputs | Heartbeat | LoadProgress | GroupWaiting | EngineReady | PodLeaving | EngineFailed
