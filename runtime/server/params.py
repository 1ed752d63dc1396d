"""A request's fields to the engine's sampling parameters, within this server's limits."""

from collections.abc import Iterable, Mapping, Sequence

from plimsoll.runtime.config import EngineConfig, ServerConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.sampling_defaults import DEFAULTED
from plimsoll.runtime.server.errors import ApiError, bad_request, invalid_value
from plimsoll.runtime.server.protocol import ChatCompletionRequest, CompletionRequest, Sampling


def check_model(name: str | None, served_name: str) -> None:
    """Raises ApiError 404 when a request names another model than the one that is served."""
    if name is not None and name != served_name:
        raise ApiError(
            404,
            f"The model `{name[:80]}` does not exist; this server has `{served_name}`.",
            param="model",
            code="model_not_found",
        )


def check_limits(request: Sampling, config: ServerConfig, vocab_size: int) -> None:
    """What the operator of this server allows, and what the model's vocabulary holds.

    Raises:
        ApiError: 400, naming the field and its limit.
    """
    limits = {"n": config.max_n, "best_of": config.max_n}
    limits |= dict.fromkeys(("top_logprobs", "prompt_logprobs"), config.max_logprobs)
    if isinstance(request, CompletionRequest):
        limits["logprobs"] = config.max_logprobs
        if len(request.prompt) > config.max_prompts:
            raise _above("prompt", len(request.prompt), config.max_prompts)
    for name, most in limits.items():
        value = getattr(request, name, None)
        if value is not None and value > most:
            raise _above(name, value, most)
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
        check_vocabulary(name, getattr(request, name, None) or (), vocab_size)


def check_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raises ApiError 400 that names the first id which is none of the model's tokens."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise invalid_value(
                f"{name} names token {token}, which is out of vocabulary: this model's {vocab_size} tokens go from 0 "
                f"to {vocab_size - 1}.",
                name,
            )


def check_queue(
    work: Sequence[tuple[list[int], SamplingParams]], samples: int, field: str, engine: EngineConfig
) -> None:
    """Refuses what not even an idle engine takes into its queue: no later attempt would fare better.

    Args:
        work: the samples of each prompt.
        samples: how many each prompt has.
        field: of the request, that says so.
        engine: whose queue it is.

    Raises:
        ApiError: 400 with the limit and the value.
    """
    made, prompts = len(work), len(work) // samples
    what = f"{prompts} prompts × {samples} samples" if prompts > 1 else f"{samples} samples"
    name, tokens = "prompt" if prompts > 1 else field, sum(len(ids) for ids, _ in work)
    if made > engine.most_sequences:
        raise invalid_value(
            f"Too many sequences: {what} are {made}, and this server takes at most {engine.most_sequences} at once. "
            "Send fewer.",
            name,
        )
    # One sequence alone is never too long for the queue.
    if made > 1 and tokens > engine.max_queued_tokens:
        raise invalid_value(
            f"Too many prompt tokens: {what} have {tokens}, and this server queues at most "
            f"{engine.max_queued_tokens}. Send fewer, or shorter ones.",
            name,
        )


def _above(name: str, value: int, most: int) -> ApiError:
    return invalid_value(f"Invalid value for {name}: this server allows up to {most} (found {value}).", name)


def answer_length(
    request: ChatCompletionRequest | CompletionRequest, prompt_tokens: int, model_len: int, *, strict: bool = False
) -> int:
    """Tokens the answer may have: what the request allows, cut to what the context leaves.

    Args:
        strict: refuse an answer that would be cut.

    Raises:
        ApiError: 400 `context_length_exceeded`, with OpenAI's sentence.
    """
    chat = isinstance(request, ChatCompletionRequest)
    limit_name, limit = "max_tokens", request.max_tokens
    if request.max_completion_tokens is not None:
        # The newer name counts where a client sends both.
        limit_name, limit = "max_completion_tokens", request.max_completion_tokens
    room = model_len - prompt_tokens
    # Even a prompt that is only scored leaves room for a token: the engine counts so.
    if room < 1 or (strict and limit is not None and limit > room):
        prompt_name = "messages" if chat else "prompt"
        wanted = f" and {limit} for the answer ({limit_name})" if limit is not None else ""
        raise bad_request(
            f"This model's maximum context length is {model_len} tokens. However, you requested "
            f"{prompt_tokens} tokens in the {prompt_name}{wanted}. Please shorten one of them.",
            prompt_name if room < 1 or limit is None else limit_name,
            "context_length_exceeded",
        )
    if limit is not None and request.min_tokens > limit:
        raise _too_many(request.min_tokens, limit)
    if strict and request.min_tokens > room:
        raise _too_many(request.min_tokens, room)
    return room if limit is None else min(limit, room)


def _too_many(tokens: int, limit: int) -> ApiError:
    return invalid_value(
        f"Invalid value for min_tokens: must be at most {limit}, which the answer may have (found {tokens}).",
        "min_tokens",
    )


def sampling_params(
    request: ChatCompletionRequest | CompletionRequest,
    max_tokens: int,
    index: int,
    *,
    logprobs: int | None,
    defaults: Mapping[str, float],
) -> SamplingParams:
    """For sample `index` of the request's n; every sample draws from its own seed.

    Args:
        request: what the client sent.
        max_tokens: what `answer_length` made of it.
        index: which sample.
        logprobs: alternatives to return for each token; None for no log-probabilities.
        defaults: `sampling_defaults`, for fields the request left out.
    """
    chosen = {name: defaults.get(name, getattr(request, name)) for name in DEFAULTED}
    chosen |= {name: getattr(request, name) for name in DEFAULTED if name in request.model_fields_set}
    prompt_logprobs = request.prompt_logprobs
    if isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None:
        prompt_logprobs = max(request.logprobs, prompt_logprobs or 0)
    return SamplingParams(
        # Without prompt log-probabilities an echo alone still takes one step; its token is dropped.
        max_tokens=max_tokens if prompt_logprobs is not None else max(1, max_tokens),
        min_tokens=min(request.min_tokens, max_tokens),
        temperature=chosen["temperature"],
        top_k=max(0, int(chosen["top_k"])),
        top_p=chosen["top_p"],
        min_p=chosen["min_p"],
        repetition_penalty=chosen["repetition_penalty"],
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias,
        seed=None if request.seed is None else (request.seed + index) & (2**63 - 1),
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        include_stop_str_in_output=request.include_stop_str_in_output,
        ignore_eos=request.ignore_eos,
        skip_special_tokens=request.skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logprob_token_ids=tuple(request.logprob_token_ids),
        allowed_token_ids=tuple(request.allowed_token_ids or ()),
        bad_words=tuple(map(tuple, request.bad_tokens)),
        cache_salt=request.partition,
        priority=request.priority or 0.0,
        grammar=request.constraint,
        thought=request.thought if isinstance(request, ChatCompletionRequest) else None,
    )
