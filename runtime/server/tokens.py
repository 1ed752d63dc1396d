"""Log-probabilities in OpenAI's two spellings, and vLLM's for prompts."""

from collections.abc import Sequence

from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.messages import Logprob, TokenLogprobs
from plimsoll.runtime.server.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)

#: JSON has no infinity; a token that cannot come has this, as with OpenAI.
FLOOR = -9999.0


class TokenTexts:
    """What one token looks like by itself. Half a character shows as the replacement character; its bytes are exact."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def __getitem__(self, token_id: int) -> tuple[str, list[int]]:
        known = self._known.get(token_id)
        if known is None:
            raw = self.tokenizer.token_bytes(token_id)
            known = self._known[token_id] = (raw.decode("utf-8", "replace"), list(raw))
        return known

    @property
    def by_id(self) -> "TokenTexts":
        """The same with `token_id:5` for the text of token 5: vLLM's `return_tokens_as_token_ids`."""
        return _TokenIds(self.tokenizer)

    def chat(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """Log-probabilities of a chat answer."""
        content = []
        for entry in entries:
            text, raw = self[entry.chosen.token_id]
            top = [TopLogprob(*self._top(item)) for item in entry.top]
            content.append(TokenLogprob(text, _finite(entry.chosen.logprob), raw, top))
        return ChatLogprobs(content)

    def _top(self, item: Logprob) -> tuple[str, float, list[int]]:
        text, raw = self[item.token_id]
        return text, _finite(item.logprob), raw

    def completion(
        self, entries: Sequence[TokenLogprobs | None], ids: Sequence[int], offsets: Sequence[int]
    ) -> CompletionLogprobs:
        """One entry a token of `ids`; None where there is nothing to say, as for a prompt's first token.

        Args:
            offsets: where each token's text begins in the choice's.
        """
        found = CompletionLogprobs([], [], [], list(offsets))
        for entry, token_id in zip(entries, ids, strict=True):
            found.tokens.append(self[token_id][0])
            if entry is None:
                found.token_logprobs.append(None)
                found.top_logprobs.append(None)
                continue
            found.token_logprobs.append(_finite(entry.chosen.logprob))
            # As in vLLM: the token itself, then the likeliest. Where two tokens read alike, the likelier one stands.
            top: dict[str, float] = {}
            for item in (*entry.top, entry.chosen):
                top.setdefault(self[item.token_id][0], _finite(item.logprob))
            itself = self[entry.chosen.token_id][0]
            found.top_logprobs.append({itself: top.pop(itself), **top})
        return found

    def prompt(self, entries: Sequence[TokenLogprobs | None] | None) -> PromptLogprobs | None:
        """Log-probabilities of a prompt, None for tokens that have none."""
        if entries is None:
            return None
        return [
            None
            if entry is None
            else {
                str(item.token_id): PromptLogprob(_finite(item.logprob), item.rank, self[item.token_id][0])
                for item in (entry.chosen, *entry.top)
            }
            for entry in entries
        ]


class _TokenIds(TokenTexts):
    def __getitem__(self, token_id: int) -> tuple[str, list[int]]:
        return f"token_id:{token_id}", super().__getitem__(token_id)[1]


def _finite(value: float) -> float:
    return max(value, FLOOR)
