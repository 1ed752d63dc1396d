"""Fields of OpenAI and of its followers that this server does not run, and the values of each that change nothing.

One rule for all: a value that cannot change an answer is accepted, any other is a 400 that names the field, the value
and what to send.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

#: Names and wishes for somebody's books, caches or queues. No value of theirs changes an answer.
LABELS = frozenset({
    "cache_prompt", "id_slot", "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "request_id", "rid", "safety_identifier", "session_id", "user",
})  # fmt: skip
#: The same on a message or on one of its parts, and what clients keep of the answer that they replay.
MESSAGE_LABELS = frozenset({
    "cache_control", "example", "id", "prompt_cache_breakpoint", "provider_specific_fields", "response_metadata",
    "usage_metadata",
})  # fmt: skip


class Neutral(NamedTuple):
    """What a field may hold. `fix` is what to send in place of any other value."""

    values: tuple[Any, ...] = ()
    fix: str = "Leave it out"
    also: Callable[[Any], bool] = lambda value: False
    """Accepts more than a list can name."""

    def holds(self, value: Any) -> bool:
        """Whether `value` changes nothing for this field."""
        return self.also(value) or any(value is given or value == given for given in self.values)


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _never_blocks(value: Any) -> bool:
    """OpenAI's `moderation` scores an answer, and with a policy of `block` withholds it."""
    if not isinstance(value, Mapping):
        return False
    policy = value.get("policy") or {}
    modes = policy.values() if isinstance(policy, Mapping) else ()
    return all(not isinstance(mode, Mapping) or mode.get("mode") != "block" for mode in modes)


_OFF, _NONE = Neutral((False,)), Neutral(([],))
_SPEC = Neutral(fix="Leave it out: answers cannot be constrained yet")
_TEMPLATE = Neutral(fix="Set it in chat_template_kwargs, where the model's template reads it")
_BEAMS = Neutral((False,), "Leave it out: there is no beam search. /v1/completions has best_of")

NEUTRAL: dict[str, Neutral] = {
    # OpenAI
    "audio": Neutral(),
    "function_call": Neutral(("none", "auto")),
    "functions": _NONE,
    "modalities": Neutral((["text"],)),
    "moderation": Neutral(also=_never_blocks, fix="Leave it out: answers are not moderated"),
    "parallel_tool_calls": Neutral((True, False)),
    "prediction": Neutral(),
    "reasoning_effort": _TEMPLATE,
    "response_format": Neutral(({"type": "text"},), _SPEC.fix),
    "service_tier": Neutral(("auto", "default")),
    "store": _OFF,
    "suffix": Neutral(("",)),
    "tool_choice": Neutral(("none", "auto")),
    "tools": _NONE,
    "verbosity": _TEMPLATE,
    "web_search_options": Neutral(),
    # vLLM
    "add_special_tokens": Neutral((False,), "Leave it out: a chat's template writes the special tokens"),
    "allowed_token_ids": Neutral(fix="Use logit_bias"),
    "bad_words": Neutral(([],), "Use logit_bias"),
    "best_of": Neutral((1,), "Use n; /v1/completions has best_of"),
    "cache_salt": Neutral(fix="Leave it out: one server's prefix cache has no partitions"),
    "detokenize": Neutral((True,)),
    "documents": _NONE,
    "early_stopping": _BEAMS,
    "echo": _OFF,
    "guided_choice": _SPEC,
    "guided_decoding_backend": _SPEC,
    "guided_grammar": _SPEC,
    "guided_json": _SPEC,
    "guided_regex": _SPEC,
    "guided_whitespace_pattern": _SPEC,
    "include_reasoning": Neutral((True,)),
    "kv_transfer_params": Neutral(({},)),
    # It weighs beams, and there are none.
    "length_penalty": Neutral(also=_number),
    "logits_processors": Neutral(([],), "Use logit_bias"),
    "mm_processor_kwargs": Neutral(({},)),
    "priority": Neutral((0,), "Leave it out: requests run in order of arrival"),
    "prompt_embeds": Neutral(fix="Use prompt"),
    "return_routed_experts": _OFF,
    "return_token_ids": _OFF,
    "return_tokens_as_token_ids": _OFF,
    # Fast tokenizers put no spaces there, whichever it is.
    "spaces_between_special_tokens": Neutral(also=_flag),
    "structural_tag": _SPEC,
    "structured_outputs": _SPEC,
    "truncate_prompt_tokens": Neutral(fix="Send a shorter prompt"),
    "use_beam_search": _BEAMS,
    "vllm_xargs": Neutral(({},)),
    # LMDeploy; its client sends its own empty `kwargs` along.
    "adapter_name": Neutral(("",)),
    "do_preprocess": Neutral((True,), "Use /v1/completions, which applies no template"),
    "enable_thinking": _TEMPLATE,
    "interactive_mode": Neutral((False,), "Send the whole conversation: none is kept here"),
    "kwargs": Neutral(({},)),
    "min_new_tokens": Neutral((0,), "Use min_tokens"),
    "random_seed": Neutral(fix="Use seed"),
    "renew_session": Neutral((True, False)),
    # SGLang, text-generation-inference, llama.cpp
    "dry_multiplier": Neutral((0,)),
    "do_sample": Neutral((True,), "Use temperature: 0"),
    "ebnf": _SPEC,
    "grammar": Neutral(("",), _SPEC.fix),
    "json_schema": _SPEC,
    "lora_path": Neutral(("",)),
    "mirostat": Neutral((0,)),
    "n_predict": Neutral(fix="Use max_tokens"),
    "no_stop_trim": Neutral((False,), "Use include_stop_str_in_output"),
    "num_beams": Neutral((1,), _BEAMS.fix),
    "regex": _SPEC,
    "repeat_penalty": Neutral((1,), "Use repetition_penalty"),
    "return_hidden_states": _OFF,
    "separate_reasoning": Neutral((True,)),
    "stream_reasoning": Neutral((True,)),
    "tfs_z": Neutral((1,)),
    "typical_p": Neutral((1,)),
    "xtc_probability": Neutral((0,)),
}


def note(ignored: set[str] | None, name: str) -> None:
    """Adds `name` to the names for the response header, where there is one."""
    if ignored is not None:
        ignored.add(name)
