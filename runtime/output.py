"""Token ids to text as they come: never half a character, never text that a stop string may still take back."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.messages import FinishReason, TokenLogprobs, TokenOutput


class TokenBytes(Protocol):
    """The methods of a tokenizer that this module needs; `checkpoint.tokenizer.Tokenizer` has them."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` hides."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; concatenated over an answer they are its UTF-8."""


@dataclass(slots=True)
class TextDelta:
    """What one output added to an answer. Concatenated, the texts are the answer."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """Tokens of the answer, the one that completed a stop string included and none after it."""
    logprobs: list[TokenLogprobs] | None = None
    """One per token in `token_ids`, when asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string or the token id that ended the answer, when one did."""
    num_tokens: int = 0
    """Tokens generated: `token_ids`, and the end token that is not among them."""


class StopStrings:
    """Finds the first of several strings to be completed in a text that comes in pieces.

    Knuth, Morris and Pratt's automaton, one a string, so a character costs the same however the text is cut and
    however long the strings are. Of two completed by the same character the longer wins: it began earlier.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = sorted((s for s in set(strings) if s), key=len, reverse=True)
        self._fallback = [_fallbacks(s) for s in self._strings]
        self._matched = [0] * len(self._strings)

    def __bool__(self) -> bool:
        return bool(self._strings)

    @property
    def held(self) -> int:
        """Length of the longest end of the text so far with which one of the strings begins."""
        return max(self._matched, default=0)

    def find(self, text: str) -> tuple[str, int] | None:
        """Reads on; the string completed and how many characters of `text` were read, its last one included."""
        for read, character in enumerate(text, 1):
            for i, string in enumerate(self._strings):
                matched, fallback = self._matched[i], self._fallback[i]
                while matched and string[matched] != character:
                    matched = fallback[matched - 1]
                matched += string[matched] == character
                if matched == len(string):
                    return string, read
                self._matched[i] = matched
        return None


def _fallbacks(string: str) -> list[int]:
    """For each prefix of `string`, the length of its longest proper prefix that also ends it."""
    lengths = [0] * len(string)
    matched = 0
    for i in range(1, len(string)):
        while matched and string[i] != string[matched]:
            matched = lengths[matched - 1]
        matched += string[i] == string[matched]
        lengths[i] = matched
    return lengths


class OutputProcessor:
    """Turns one request's token outputs into text. Costs the same a token, however long the answer is.

    Works on bytes: text is given out up to the last whole character, and bytes that cannot become one turn into U+FFFD
    as they do when the whole answer is decoded.
    """

    def __init__(self, tokenizer: TokenBytes, params: SamplingParams, shown: frozenset[int] = frozenset()) -> None:
        """Args: shown: special tokens that are text all the same."""
        self._tokenizer = tokenizer
        self._params = params
        self._hidden = tokenizer.special_ids - shown if params.skip_special_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(params.stop)
        self._held = ""
        """The end of the text so far that may be the beginning of a stop string."""
        self.finished = False

    def add(self, output: TokenOutput) -> TextDelta:
        """The text that `output` adds.

        With `finish_reason` set the answer is over, and what was held back is given out. When a stop string ended it,
        the engine does not know: the caller aborts the request there. After the end nothing is added.
        """
        delta = TextDelta()
        if self.finished:
            return delta
        if output.logprobs is not None:
            delta.logprobs = []
        for i, token in enumerate(output.token_ids):
            delta.token_ids.append(token)
            delta.num_tokens += 1
            if output.logprobs is not None and delta.logprobs is not None:
                delta.logprobs.append(output.logprobs[i])
            ends_it = token == output.stop_token_id and i == len(output.token_ids) - 1
            if token in self._hidden or (ends_it and not self._params.include_stop_str_in_output):
                continue
            text = self._decoder.decode(self._tokenizer.token_bytes(token))
            if text and self._add(text, delta):
                return delta
        if output.finish_reason is not None:
            if output.stop_token_id is not None and output.stop_token_id not in output.token_ids[-1:]:
                delta.num_tokens += 1
            rest = self._decoder.decode(b"", final=True)
            if rest and self._add(rest, delta):
                return delta
            delta.text += self._held
            delta.finish_reason = output.finish_reason
            delta.stop_reason = output.stop_token_id
            self.finished = True
        return delta

    def _add(self, text: str, delta: TextDelta) -> bool:
        """Gives out what it may of the held text and `text`; True if a stop string is complete."""
        if not self._stops:
            delta.text += text
            return False
        found = self._stops.find(text)
        if found is None:
            text = self._held + text
            held = self._stops.held
            delta.text += text[: len(text) - held]
            self._held = text[len(text) - held :]
            return False
        stop, read = found
        text = self._held + text[:read]
        delta.text += text if self._params.include_stop_str_in_output else text[: len(text) - len(stop)]
        delta.finish_reason = "stop"
        delta.stop_reason = stop
        self.finished = True
        return True
