"""Which tokens end an answer: one set for the server, the library, quantization and evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.checkpoint.checkpoint import token_ids

#: Spellings that end a turn in a published chat format. They count where they are added tokens, never as plain text.
END_OF_TURN = frozenset(
    {
        "<|im_end|>",  # ChatML: Qwen, InternLM2, SmolLM2, Yi, Hermes
        "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>",  # Llama 3 and 4
        "<end_of_turn>", "<turn|>",  # Gemma
        "<|end|>",  # Phi 3
        "<|end_of_turn|>",  # OpenChat, Starling
        "<|endofturn|>", "[|endofturn|]",  # HyperCLOVA, EXAONE
        "<|EOT|>", "<EOT>", "_<EOT>", "[EOT]", "<|/EOT|>",  # DeepSeek Coder, Code Llama's infilling, Kimi
        "<end_of_utterance>",  # SmolVLM
    }
)  # fmt: skip
#: Roles of a tokenizer's configuration whose token ends an answer.
_ROLES = ("eos_token", "eot_token", "eom_token")


def end_token_ids(fast: Any, config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Every id that ends an answer, in ascending order.

    The union of `eos_token_id` of both configurations, the tokenizer's own end, and the end-of-turn tokens
    (`END_OF_TURN`) among its added tokens: many chat models name the end of their turns in one of these places only.

    Args:
        fast: a transformers fast tokenizer.
    """
    backend = fast.backend_tokenizer
    ends = {*token_ids(config.get("eos_token_id")), *token_ids(generation_config.get("eos_token_id"))}
    ends |= set(token_ids(fast.eos_token_id))
    for role in _ROLES:
        # transformers 5 keeps a role of the model's own among its arguments or apart from them, by how it was written.
        said = fast.special_tokens_map.get(role) or fast.init_kwargs.get(role)
        token = said.get("content") if isinstance(said, Mapping) else None if said is None else str(said)
        index = backend.token_to_id(token) if isinstance(token, str) else None
        ends |= set() if index is None else {index}
    added = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
    for token in END_OF_TURN & added.keys():
        # In OpenAI's harmony format <|end|> stands between the parts of one answer, and <|return|> after the last.
        if token != "<|end|>" or "<|return|>" not in added:
            ends.add(added[token])
    return tuple(sorted(ends))


def with_ends(generation_config: Mapping[str, Any], ends: Sequence[int]) -> dict[str, Any]:
    """`generation_config` that names all of `ends`, for readers that look nowhere else."""
    written = dict(generation_config)
    if set(token_ids(written.get("eos_token_id"))) != set(ends):
        written["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    return written
