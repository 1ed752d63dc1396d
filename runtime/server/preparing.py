"""Requests made ready for the engine, beside the event loop: bodies parsed, templates rendered, texts tokenized."""

import structlog

from plimsoll.runtime.server.errors import ApiError, bad_request, not_ready
from plimsoll.runtime.server.forked import Forker
from plimsoll.runtime.server.lanes import FaultError, Lanes, UnfinishedError
from plimsoll.runtime.server.preparer import STEPS, Prepared, Preparer, Route

#: The most of a processor's time that preparing one request may take.
SECONDS = 10.0
#: Bytes that preparing a long request may take: a part for all, and one for each token of the model's length. English
#: takes 600 bytes a token while it is tokenized.
MEMORY, TOKEN_MEMORY = 96 << 20, 640
#: Tokens of a context whose length is not known yet.
UNKNOWN_LEN = 4096

log = structlog.get_logger("plimsoll.server")

_FIXES = {
    None: "Send a smaller body.",
    "chat_template": "Shorten messages, or what chat_template_kwargs asks for. If all conversations end like this, the "
    "fault is in the model's chat template: serve with another, by --chat-template FILE.",
    "messages": "Shorten messages. If all conversations end like this, the fault is in the model's tokenizer.",
    "tokens": "Send fewer tokens.",
    "prompt": "Shorten prompt. If all prompts end like this, the fault is in the model's tokenizer.",
}
_WORK = {
    None: "Reading the body",
    "chat_template": "Rendering the messages by the model's chat_template",
    "messages": "Tokenizing the messages",
    "prompt": "Tokenizing the prompt",
    "tokens": "Decoding the tokens",
}


class Preparing:
    """Runs a Preparer in forked processes. Make it before the process has threads or connections.

    Args:
        request_timeout: seconds that a request may take in all.
        seconds: of a processor that preparing one may take.
    """

    def __init__(self, preparer: Preparer, request_timeout: float, seconds: float = SECONDS) -> None:
        self._lanes = Lanes(Forker(preparer), min(seconds, request_timeout / 2), request_timeout)

    async def run(self, route: Route, body: bytearray, model_len: int | None) -> Prepared:
        """See `Preparer`. Raises ApiError."""
        memory = MEMORY + TOKEN_MEMORY * (model_len or UNKNOWN_LEN)
        try:
            found: Prepared | ApiError = await self._lanes.run(body, (route, model_len), memory)
        except UnfinishedError as error:
            raise _unfinished(error) from None
        except FaultError as error:
            log.error("request failed", traceback=str(error))
            raise ApiError(500, "The server failed on this request.", code="internal_error") from None
        except OSError as error:
            raise not_ready(f"No process can be started to prepare this request: {error.strerror}.") from None
        try:
            if isinstance(found, ApiError):
                raise found
            return found
        finally:
            # An error that a frame of its own traceback holds keeps the body of the request until a collection.
            del found

    async def lost(self) -> str:
        """Waits until requests cannot be prepared any more; returns why."""
        await self._lanes.lost()
        return "the process that starts others to prepare requests was killed"

    def close(self) -> None:
        self._lanes.close()


def _unfinished(error: UnfinishedError) -> ApiError:
    if error.reason == "busy":
        return not_ready("This machine is too busy to prepare the request; try again shortly.")
    step = STEPS[error.step]
    limit = {
        "time": f"took more of a processor's time than this server allows ({error.seconds:g} s)",
        "memory": "took more memory than this server allows",
        "end": "ended the process that did it, most likely because memory ran out",
    }[error.reason]
    work, fix = _WORK.get(step, f"Compiling {step}"), _FIXES.get(step, "Send a simpler one.")
    return bad_request(f"{work} {limit}. {fix}", step, "too_expensive")
