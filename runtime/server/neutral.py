"""Fields of OpenAI and of its followers that this server does not run, and the values of each that change no answer.

One rule for all: a value that cannot change an answer is accepted, and the response header `x-plimsoll-ignored` names
its field. Any other value is a 400 that names the field, the value and what to send.
"""

from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """Values that a list cannot name."""

    words: str
    holds: Callable[[Any], bool]
    example: Any


class Neutral(NamedTuple):
    """What a field may hold. `fix` is what to send in place of any other value."""

    values: tuple[Any, ...] = ()
    fix: str = "Leave it out"
    also: Kind | None = None
    """Accepts more than a list can name."""

    def holds(self, value: Any) -> bool:
        """Whether `value` changes nothing for this field."""
        if self.also is not None and self.also.holds(value):
            return True
        return any(value is given or value == given for given in self.values)


def _never_blocks(value: Any) -> bool:
    """OpenAI's `moderation` scores an answer, and with a policy of `block` withholds it."""
    if not isinstance(value, Mapping):
        return False
    policy = value.get("policy") or {}
    modes = policy.values() if isinstance(policy, Mapping) else ()
    return all(not isinstance(mode, Mapping) or mode.get("mode") != "block" for mode in modes)


_NUMBER = Kind("any number", lambda value: isinstance(value, int | float), 0.5)
_UNBLOCKED = Kind("no policy of mode `block`", _never_blocks, {"model": "omni-moderation-latest"})

#: Names and wishes for accounts, caches and queues.
_LABEL = Neutral(also=Kind("any value", lambda value: True, "a label"))
_OFF, _NONE, _EMPTY, _EITHER = Neutral((False,)), Neutral(([],)), Neutral(({},)), Neutral((True, False))
_TEMPLATE = Neutral(fix="Set it in chat_template_kwargs, where the model's template reads it")
_BEAMS = Neutral((False,), "Leave it out: there is no beam search. /v1/completions has best_of")

NEUTRAL: dict[str, Neutral] = {
    # OpenAI
    "audio": Neutral(),
    "function_call": Neutral(("none", "auto"), "Use tool_choice"),
    "functions": Neutral(([],), "Use tools"),
    "metadata": _LABEL,
    "modalities": Neutral((["text"],)),
    "moderation": Neutral(also=_UNBLOCKED, fix="Leave it out: answers are not moderated"),
    # A prediction only makes an answer faster.
    "prediction": _LABEL,
    "prompt_cache_key": _LABEL,
    "prompt_cache_options": _LABEL,
    "prompt_cache_retention": _LABEL,
    "safety_identifier": _LABEL,
    "service_tier": Neutral(("auto", "default", "flex", "scale", "priority")),
    "store": _EITHER,
    "suffix": Neutral(("",)),
    "user": _LABEL,
    # Open models have no such setting: well-known clients send it to all.
    "verbosity": Neutral(("low", "medium", "high")),
    "web_search_options": Neutral(),
    # vLLM
    "best_of": Neutral((1,), "Use n; /v1/completions has best_of"),
    "detokenize": Neutral((True,)),
    "documents": _NONE,
    "early_stopping": _BEAMS,
    "ec_transfer_params": _EMPTY,
    # The answer matches whichever it is.
    "guided_decoding_backend": _LABEL,
    "kv_transfer_params": _EMPTY,
    # It weighs beams, and there are none.
    "length_penalty": Neutral(also=_NUMBER),
    "logits_processors": Neutral(([],), "Use logit_bias"),
    "logprob_token_ids": _NONE,
    # Settings of images, sounds and videos, whose parts are refused.
    "media_io_kwargs": _LABEL,
    "mm_processor_kwargs": _LABEL,
    "prompt_embeds": Neutral(fix="Use prompt"),
    "repetition_detection": Neutral(),
    "request_id": _LABEL,
    "return_mm_kwargs": _EITHER,
    "return_prompt_text": _OFF,
    "return_routed_experts": _OFF,
    "return_token_ids": _OFF,
    "return_token_offsets": _OFF,
    "return_tokens_as_token_ids": _OFF,
    "session_id": _LABEL,
    # Fast tokenizers put no spaces there, whichever it is.
    "spaces_between_special_tokens": _EITHER,
    "stream_interval": Neutral(also=_NUMBER),
    "structural_tag": Neutral(fix="Use response_format or tools"),
    "thinking_token_budget": Neutral(
        (-1,),
        "Use it in /v1/chat/completions; reasoning.max_tokens in /v1/responses, thinking.budget_tokens in /v1/messages",
    ),
    "use_beam_search": _BEAMS,
    "vllm_xargs": _EMPTY,
    "watermarking": _OFF,
    # LMDeploy; its client sends its own empty `kwargs` along.
    "adapter_name": Neutral(("",)),
    "do_preprocess": Neutral((True,), "Use /v1/completions, which applies no template"),
    "enable_thinking": _TEMPLATE,
    "interactive_mode": Neutral((False,), "Send the whole conversation: none is kept here"),
    "kwargs": _EMPTY,
    "min_new_tokens": Neutral((0,), "Use min_tokens"),
    "random_seed": Neutral(fix="Use seed"),
    "renew_session": _EITHER,
    # SGLang
    "custom_params": _EMPTY,
    "data_parallel_rank": _LABEL,
    "extra_key": Neutral(fix="Use cache_salt"),
    "images_config": _LABEL,
    "lora_path": Neutral(("",)),
    "max_dynamic_patch": _LABEL,
    "min_dynamic_patch": _LABEL,
    "no_stop_trim": Neutral((False,), "Use include_stop_str_in_output"),
    "return_cached_tokens_details": _OFF,
    "return_hidden_states": _OFF,
    "return_meta_info": _OFF,
    "return_prompt_token_ids": Neutral((False,), "Use return_token_ids"),
    "rid": _LABEL,
    "routed_dp_rank": _LABEL,
    "session_params": _EMPTY,
    "stream_reasoning": Neutral((True,)),
    "use_audio_in_video": _EITHER,
    # Text-generation-inference
    "decoder_input_details": Neutral((False,), "Use prompt_logprobs"),
    "details": Neutral((False,), "Use logprobs"),
    "do_sample": Neutral((True,), "Use temperature: 0"),
    "max_new_tokens": Neutral(fix="Use max_tokens"),
    "num_beams": Neutral((1,), _BEAMS.fix),
    "return_full_text": Neutral((False,), "Use echo in /v1/completions"),
    "truncate": Neutral(fix="Use truncate_prompt_tokens"),
    "typical_p": Neutral((1,)),
    "watermark": _OFF,
    # llama.cpp; what shapes a sampler that is off has no effect.
    "cache_prompt": _LABEL,
    "dry_allowed_length": Neutral(also=_NUMBER),
    "dry_base": Neutral(also=_NUMBER),
    "dry_multiplier": Neutral((0,)),
    "dry_penalty_last_n": Neutral(also=_NUMBER),
    "dry_sequence_breakers": _LABEL,
    "dynatemp_exponent": Neutral(also=_NUMBER),
    "dynatemp_range": Neutral((0,)),
    "id_slot": _LABEL,
    "lora": _NONE,
    "min_keep": Neutral((0,)),
    "mirostat": Neutral((0,)),
    "mirostat_eta": Neutral(also=_NUMBER),
    "mirostat_tau": Neutral(also=_NUMBER),
    "n_cache_reuse": Neutral(also=_NUMBER),
    "n_keep": Neutral(also=_NUMBER),
    "n_predict": Neutral(fix="Use max_tokens"),
    "n_probs": Neutral((0,), "Use logprobs"),
    "post_sampling_probs": _OFF,
    "repeat_last_n": Neutral((-1,), "Leave it out: penalties look at the whole answer"),
    "repeat_penalty": Neutral((1,), "Use repetition_penalty"),
    "return_progress": _OFF,
    "return_tokens": Neutral((False,), "Use return_token_ids"),
    "samplers": Neutral(),
    "speculative.n_max": _LABEL,
    "speculative.n_min": _LABEL,
    "speculative.p_min": _LABEL,
    "t_max_predict_ms": Neutral((0,), "Use max_tokens"),
    "tfs_z": Neutral((1,)),
    "timings_per_token": _OFF,
    "top_n_sigma": Neutral((-1,)),
    "verbose": _OFF,
    "xtc_probability": Neutral((0,)),
    "xtc_threshold": Neutral(also=_NUMBER),
    # Ollama
    "keep_alive": _LABEL,
}

#: Labels on a message or on one of its parts, and what clients keep of the answer that they replay.
MESSAGE_LABELS = frozenset({
    "cache_control", "example", "id", "prompt_cache_breakpoint", "provider_specific_fields", "response_metadata",
    "usage_metadata",
})  # fmt: skip

#: What the header calls the labels of messages and of their parts.
MESSAGES, PARTS = "messages[]", "messages[].content[]"


def without_ignored(data: Mapping[str, Any], run: Container[str], ignored: set[str] | None) -> dict[str, Any]:
    """The fields of a request that count: neither null nor without effect here.

    Args:
        run: names of the fields that this route runs, with any value.
        ignored: gets the names of fields that are left out though they are not null.
    """
    kept = {}
    for name, value in data.items():
        if value is None:
            continue
        if name in NEUTRAL and name not in run and NEUTRAL[name].holds(value):
            note(ignored, name)
            continue
        kept[name] = value
    return kept


def note(ignored: set[str] | None, name: str) -> None:
    """Adds `name` to the names for the response header, where there is one."""
    if ignored is not None:
        ignored.add(name)
