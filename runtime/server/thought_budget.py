"""A request's budget of thought, as the engine has it: how the served model marks its thoughts, in token ids."""

from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.engine.core.sampling_params import ThoughtBudget
from plimsoll.runtime.server.errors import invalid_value
from plimsoll.runtime.server.parsing.thoughts import THOUGHTS
from plimsoll.runtime.server.protocol import ChatCompletionRequest


def thought_budget(request: ChatCompletionRequest, tokenizer: Tokenizer, *, optional: bool) -> ThoughtBudget | None:
    """The budget of a request whose `reading` is set; None where thoughts have no limit.

    Args:
        optional: where the model's thoughts are not read, name the field as one without effect.

    Raises:
        ApiError: 400 that names the field, where the model's thoughts are not read.
    """
    tokens, field = request.thinking_token_budget, request.budget_name
    if tokens is None or tokens < 0:
        return None
    reading = request.reading
    if reading is None or reading.reasoning_parser is None:
        if optional:
            request.unheard.add(field)
            return None
        if not request.separate_reasoning:
            raise invalid_value(f"{field} needs separate_reasoning: true. Set that, or leave the field out.", field)
        raise invalid_value(
            f"{field} needs a model whose thoughts this server reads, and it reads none. Leave the field out; or start "
            "the server with --reasoning-parser, if the model thinks.",
            field,
        )
    thoughts = THOUGHTS[reading.reasoning_parser]
    close = tokenizer.encode(thoughts.end, add_special_tokens=False)
    if thoughts.end.encode() not in b"".join(map(tokenizer.token_bytes, close)):
        raise invalid_value(
            f"{field} needs a model whose tokens can write {thoughts.end}. Leave the field out; or start the server "
            "with the --reasoning-parser of this model.",
            field,
        )
    return ThoughtBudget(
        tokens=tokens,
        begins=(thoughts.begin, *thoughts.begins),
        end=thoughts.end,
        open=reading.thinking,
        close=tuple(close),
    )
