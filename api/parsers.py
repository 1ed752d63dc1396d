"""Names of the parsers that take an answer apart, and what other servers call them."""

from typing import Literal, get_args

from plimsoll.api.errors import SpecError

#: How a family of models writes the functions that it calls. auto: the model's chat template decides.
ToolParser = Literal[
    "auto", "none", "cohere", "deepseek_v3", "deepseek_v31", "deepseek_v32", "gemma", "glm45", "granite", "hermes",
    "hunyuan", "internlm", "kimi_k2", "lfm2", "llama3_json", "minimax_m2", "mistral", "olmo3", "phi4_mini", "pythonic",
    "qwen3_coder",
]  # fmt: skip
#: How a family marks what it thinks before it answers.
ReasoningParser = Literal[
    "auto", "none", "cohere", "gemma4", "granite", "hunyuan", "mistral", "seed_oss", "think",
]  # fmt: skip
AUTO, NONE = "auto", "none"
TOOL_PARSERS: tuple[str, ...] = get_args(ToolParser)[2:]
REASONING_PARSERS: tuple[str, ...] = get_args(ReasoningParser)[2:]

#: vLLM's, SGLang's and LMDeploy's names.
_TOOL_NAMES = {
    "command_r": "cohere", "deepseekv3": "deepseek_v3", "deepseekv31": "deepseek_v31", "deepseekv32": "deepseek_v32",
    "functiongemma": "gemma", "gemma3": "hermes", "gemma4": "gemma", "glm": "glm45", "glm4": "glm45",
    "glm47": "glm45", "granite4": "hermes", "hunyuan_a13b": "hunyuan", "intern-s1": "hermes", "interns1": "hermes",
    "internlm2": "internlm", "kimi": "kimi_k2", "llama3": "llama3_json", "llama4": "pythonic",
    "llama4_json": "llama3_json", "llama4_pythonic": "pythonic", "minimax-m2": "minimax_m2",
    "phi4_mini_json": "phi4_mini", "qwen": "hermes", "qwen25": "hermes", "qwen2d5": "hermes", "qwen3": "hermes",
    "qwen3_xml": "qwen3_coder", "qwen3coder": "qwen3_coder", "seed_oss": "qwen3_coder",
}  # fmt: skip
_REASONING_NAMES = {
    "deepseek-r1": "think", "deepseek-v3": "think", "deepseek_r1": "think", "deepseek_v3": "think",
    "ernie45": "think", "glm45": "think", "hunyuan_a13b": "hunyuan", "intern-s1": "think", "interns1": "think",
    "kimi": "think", "minimax_m2": "think", "nano_v3": "think", "qwen-qwq": "think", "qwen3": "think",
    "qwen3-thinking": "think", "qwq": "think", "step3": "think",
}  # fmt: skip


def tool_parser_name(value: str, field: str) -> str:
    """The parser's own name. Raises SpecError for a name that is none.

    Args:
        field: what the user calls the setting.
    """
    return _name(value, field, TOOL_PARSERS, _TOOL_NAMES)


def reasoning_parser_name(value: str, field: str) -> str:
    """See `tool_parser_name`."""
    return _name(value, field, REASONING_PARSERS, _REASONING_NAMES)


def _name(value: str, field: str, names: tuple[str, ...], others: dict[str, str]) -> str:
    found = others.get(value.lower(), value.lower())
    if found not in (AUTO, NONE, *names):
        raise SpecError(
            f"must be {AUTO}, {NONE} or one of {', '.join(names)}", field=field, value=value,
            fix=f"Leave it out, and the model's chat template decides ({AUTO})",
        )  # fmt: skip
    return found
