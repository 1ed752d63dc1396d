"""vLLM's `return_token_ids`: the ids of the prompt's tokens and of the answer's, beside the text."""

from typing import Any

from plimsoll.runtime.server.generation import Answer


class TokenIds:
    """What the chunks of a stream say of token ids: the prompt's in the first chunk, then the answer's as they come.

    Args:
        wanted: the request asks for them. Nothing is added to any chunk otherwise.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._given: dict[int, int] = {}

    def prompt(self, answer: Answer) -> dict[str, Any]:
        """Fields of a choice's first chunk, or of all around it; none in later ones."""
        if not self.wanted or answer.index in self._given:
            return {}
        self._given[answer.index] = 0
        return {"prompt_token_ids": answer.request.prompt_token_ids}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Fields of a choice that is not streamed."""
        return self.prompt(answer) | self.more(answer)

    def more(self, answer: Answer) -> dict[str, Any]:
        """Fields of any other chunk: the ids that no chunk had yet."""
        if not self.wanted or answer.index not in self._given:
            return {}
        given = self._given[answer.index]
        self._given[answer.index] = len(answer.token_ids)
        return {"token_ids": answer.token_ids[given:]}
