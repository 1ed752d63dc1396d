"""How large a body may be: as a request that fits the model takes, unless the server's owner says otherwise."""

from typing import NamedTuple

from plimsoll.api.quantity import format_bytes
from plimsoll.runtime.config import EngineConfig, ServerConfig

MIB = 1 << 20
#: Bytes of JSON for a token of one text. English takes 5; Cyrillic written as \\uXXXX, 27; indented code, 10.
TEXT_BYTES = 64
#: Bytes of JSON for a token of a request with many prompts: a token id, a comma and a space, or English.
BATCH_BYTES = 8
#: Bytes for all fields that are no prompt: names and roles of messages, logit_bias, metadata.
REST_BYTES = 256 * 1024
#: What the default is kept within. The smallest body leaves room for a request that is refused by its tokens, with a
#: better reason than its bytes.
LEAST, MOST = MIB, 16 * MIB
#: Full bodies that are held at once, and the bounds of what they may take together.
AT_ONCE, LEAST_TOGETHER, MOST_TOGETHER = 4, 16 * MIB, 64 * MIB


class BodySize(NamedTuple):
    """Bytes of one body and of all bodies together."""

    one: int
    together: int
    why: str
    """Where the limit of one body comes from, and what changes it: the end of a sentence."""


def body_size(server: ServerConfig, engine: EngineConfig, model_len: int | None) -> BodySize:
    """The limits of bodies.

    Args:
        model_len: tokens of the longest request; None before the engine has said it. The limit is the largest then: a
            request is not refused for good because the model still loads.
    """
    option = "--max-body-bytes" if engine.names == "options" else "max_body_bytes"
    one = server.max_body_bytes
    if one is not None:
        why = f"as {option} says"
    elif model_len is None:
        one, why = MOST, "while its model loads"
    else:
        tokens = min(max(engine.max_queued_tokens, model_len), server.max_prompts * model_len)
        one = min(MOST, max(LEAST, REST_BYTES + max(TEXT_BYTES * model_len, BATCH_BYTES * tokens)))
        why = f"which suits the {model_len} tokens of its context"
        # A manifest has no field for the limit itself.
        why += " (context.maxLength)" if engine.names == "manifest" else f"; {option} sets another limit"
    together = server.max_bodies_bytes
    if together is None:
        together = min(MOST_TOGETHER, max(LEAST_TOGETHER, AT_ONCE * one))
    return BodySize(one, max(one, together), why)


def too_large(size: BodySize) -> str:
    """The message for a body over the limit."""
    return (
        f"The request body is larger than the {size.one} bytes ({format_bytes(size.one)}) that this server takes, "
        f"{size.why}. Send a shorter prompt or fewer messages."
    )
