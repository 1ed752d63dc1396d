"""What an OpenAI endpoint gives the tokens of a prompt: log-probabilities of each and of the likeliest alternatives."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plimsoll.api.errors import PlimsollError
from plimsoll.checkpoint.answers import IDENTITY, body
from plimsoll.checkpoint.tokenizer import Tokenizer

if TYPE_CHECKING:
    import httpx

#: Bytes of an answer: twenty alternatives of each token of a long window take a tenth.
MOST_BYTES = 256 << 20
#: Alternatives asked for at each position; the fewer where a server allows no more. OpenAI's own allows five.
TOPS = (20, 5)
#: Requests in flight.
AT_ONCE = 4
TRY_AGAIN = "Try again when it is ready; for 401 and 403 give its key"
#: What servers write for a token that cannot come is below this.
LEAST = -1000.0


class EndpointError(PlimsollError):
    """An endpoint cannot be reached, or does not give log-probabilities of a prompt."""


@dataclass(frozen=True)
class Position:
    """What is known of one prediction: natural logarithms.

    Attributes:
        chosen: log p of the token that the text has there.
        top: log p by token id, of the likeliest and of the token that the text has.
        first: the likeliest token; None where its id is not known.
    """

    chosen: float
    top: Mapping[int, float]
    first: int | None


class Endpoint:
    """The completions of an OpenAI endpoint. For several threads.

    Args:
        url: with or without the `/v1` at its end.
        tokenizer: of the model it serves.
        model: None asks the endpoint and takes the first it names.
        key: sent as bearer token when given.
    """

    def __init__(self, url: str, tokenizer: Tokenizer, model: str | None = None, key: str | None = None) -> None:
        import httpx

        root = url.rstrip("/")
        self.url = root if root.endswith("/v1") else f"{root}/v1"
        headers = IDENTITY | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(600, connect=10))
        self._tokenizer = tokenizer
        self._by_text: dict[str, int | None] | None = None
        self._extra: dict[str, Any] = {}
        self.top = TOPS[0]
        """Alternatives at each position."""
        self.model = model or self._first_model()

    def check(self, window: Sequence[int]) -> None:
        """Find out, before anything else is done, whether windows of this length are scored. Raises EndpointError."""
        self._agree(window)
        # A server may answer 200 and leave the log-probabilities out.
        self._score(window)

    def score(
        self, windows: Sequence[Sequence[int]], progress: Callable[[int], None] = lambda done: None
    ) -> list[list[Position]]:
        """One list a window: what the endpoint predicts for each token but the first.

        Args:
            progress: called with the number of windows that are scored.

        Raises:
            EndpointError: no connection, an answer that is none, a server that gives no log-probabilities of prompts,
                or one whose tokens are not this tokenizer's.
        """
        self._agree(windows[0])
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = []
            for positions in pool.map(self._score, windows):
                found.append(positions)
                progress(len(found))
            return found

    def close(self) -> None:
        self._client.close()

    def _first_model(self) -> str:
        try:
            names = [str(item["id"]) for item in self._json(self._request("GET", "models")).get("data", ())]
        except (KeyError, TypeError):
            raise self._error("does not answer as an OpenAI endpoint does") from None
        if not names:
            raise self._error("serves no model")
        return names[0]

    def _agree(self, window: Sequence[int]) -> None:
        """Finds what this server takes: vLLM's `prompt_logprobs` says ids, and not every server knows it."""
        last = ""
        for top in TOPS:
            for extra in ({"prompt_logprobs": top}, {}):
                self.top, self._extra = top, extra
                answer = self._request("POST", "completions", self._body(window))
                if answer.status_code == 200:
                    return
                last = self._reason(answer)
                if answer.status_code not in (400, 422):
                    raise self._error(last, TRY_AGAIN)
        raise self._error(f"refuses to score a prompt: {last}")

    def _body(self, window: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self.model, "prompt": list(window), "max_tokens": 0, "echo": True, "logprobs": self.top,
            "temperature": 0, **self._extra,
        }  # fmt: skip

    def _score(self, window: Sequence[int]) -> list[Position]:
        answer = self._json(self._request("POST", "completions", self._body(window)))
        try:
            choice = answer["choices"][0]
            found = choice.get("prompt_logprobs") or answer.get("prompt_logprobs")
            if found:
                return self._by_id(found, window)
            if choice.get("logprobs"):
                return self._by_spelling(choice["logprobs"], window)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError):
            raise self._error("does not answer as an OpenAI endpoint does") from None
        raise self._error("gives no log-probabilities of a prompt")

    def _by_id(self, entries: Sequence[Any], window: Sequence[int]) -> list[Position]:
        if len(entries) != len(window):
            raise self._error(f"made {len(entries)} tokens of {len(window)}")
        found = []
        for entry, token in zip(entries[1:], window[1:], strict=True):
            top = {int(index): float(item["logprob"]) for index, item in entry.items()}
            first = min(entry, key=lambda index: (-float(entry[index]["logprob"]), int(index)))
            found.append(Position(top[token], _possible(top), int(first)))
        return found

    def _by_spelling(self, entries: Mapping[str, Any], window: Sequence[int]) -> list[Position]:
        chosen, tops = entries["token_logprobs"], entries["top_logprobs"]
        if len(chosen) < len(window) or len(tops) < len(window):
            raise self._error(f"made {len(chosen)} tokens of {len(window)}")
        found = []
        for index in range(1, len(window)):
            spelled = tops[index] or {}
            ids = {text: self._id(text) for text in spelled}
            top = {token: float(spelled[text]) for text, token in ids.items() if token is not None}
            first = max(spelled, key=lambda text: float(spelled[text]), default=None)
            top[window[index]] = float(chosen[index])
            found.append(Position(float(chosen[index]), _possible(top), None if first is None else ids[first]))
        return found

    def _id(self, text: str) -> int | None:
        """The token that reads so; None where several do."""
        if text.startswith("token_id:"):
            return int(text.removeprefix("token_id:"))
        if self._by_text is None:
            known: dict[str, int | None] = {}
            for token in range(self._tokenizer.vocab_size):
                spelled = self._tokenizer.token_bytes(token).decode("utf-8", "replace")
                known[spelled] = None if spelled in known else token
            self._by_text = known
        return self._by_text.get(text)

    def _request(self, method: str, path: str, asked: Mapping[str, Any] | None = None) -> "httpx.Response":
        import httpx

        try:
            with self._client.stream(method, f"{self.url}/{path}", json=asked) as answer:
                return httpx.Response(answer.status_code, content=body(answer, MOST_BYTES))
        except ValueError as error:
            raise self._error(f"does not answer as an OpenAI endpoint does: {error}") from None
        except httpx.ConnectError:
            raise self._error("nothing answers there", "Start a server with `plimsoll serve`") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._error(f"the connection failed: {error}") from None

    def _json(self, answer: "httpx.Response") -> dict[str, Any]:
        if answer.status_code != 200:
            raise self._error(self._reason(answer), TRY_AGAIN)
        try:
            found = answer.json()
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._error("does not answer as an OpenAI endpoint does")
        return found

    def _reason(self, answer: "httpx.Response") -> str:
        try:
            said = answer.json()["error"]["message"]
        except (KeyError, TypeError, ValueError, RecursionError):
            said = answer.content[:1000].decode("utf-8", "replace")
        return f"HTTP {answer.status_code}: {str(said)[:200]}"

    def _error(self, message: str, fix: str = "It must score prompts: /v1/completions with echo and logprobs") -> Any:
        return EndpointError(message, field="endpoint", value=self.url, fix=fix)


def _possible(top: Mapping[int, float]) -> dict[int, float]:
    return {token: value for token, value in top.items() if value > LEAST}
