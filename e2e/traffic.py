"""Traffic that never stops while things change, and counts what became of each request.

Clients are the real `openai` package and plain httpx, without retries: one that a client library repeats quietly is a
failure here. Requests are small, because the machine that serves them may have two cores.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import openai

#: Longer than any drain; a request that takes more is a failure, not a wait.
TIMEOUT = 120.0
PROMPT = "Count from one to one hundred in words, separated by commas."


@dataclass(frozen=True)
class Failed:
    """One request that did not get its whole answer."""

    kind: str
    began: float
    """Seconds since the traffic began."""
    ended: float
    words: str

    def __str__(self) -> str:
        return f"{self.kind} {self.began:.2f}–{self.ended:.2f} s: {self.words}"


@dataclass
class Report:
    """What has run so far. Read while traffic runs, or after."""

    begun: float = field(default_factory=time.monotonic)
    started: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    failed: list[Failed] = field(default_factory=list)
    slowest: float = 0.0
    marks: list[tuple[float, str]] = field(default_factory=list)

    def now(self) -> float:
        return time.monotonic() - self.begun

    def mark(self, what: str) -> float:
        """Notes a moment, so that a failure can be read beside what happened then."""
        at = self.now()
        self.marks.append((at, what))
        return at

    @property
    def requests(self) -> int:
        return sum(self.started.values())

    def more(self, each: int = 2, seconds: float = TIMEOUT) -> None:
        """Returns when every kind of request was completed `each` times more."""
        before = Counter(self.completed)
        until = time.monotonic() + seconds
        while any(self.completed[kind] - before[kind] < each for kind in self.started):
            assert time.monotonic() < until, f"no {each} more requests of every kind in {seconds:.0f} s: {self.words()}"
            time.sleep(0.1)

    def assert_none_failed(self) -> None:
        assert self.requests, "no request ran"
        assert not self.failed, self.words()

    def words(self) -> str:
        lines = [f"{len(self.failed)} of {self.requests} requests failed ({dict(self.completed)} completed)"]
        lines += [f"  {failure}" for failure in self.failed[:20]]
        lines += [f"  mark {at:.2f} s: {what}" for at, what in self.marks]
        return "\n".join(lines)

    def figures(self) -> dict[str, object]:
        return {
            "requests": self.requests,
            "completed": dict(self.completed),
            "failed": len(self.failed),
            "failures": [str(failure) for failure in self.failed[:20]],
            "slowestSeconds": round(self.slowest, 2),
            "seconds": round(self.now(), 1),
            "marks": [{"at": round(at, 2), "what": what} for at, what in self.marks],
        }


def _client(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=TIMEOUT)


def _stream(client: openai.OpenAI, model: str, tokens: int) -> None:
    finish = None
    messages = [{"role": "user", "content": PROMPT}]
    with client.chat.completions.create(model=model, messages=messages, max_tokens=tokens, stream=True) as chunks:  # type: ignore[call-overload]
        for chunk in chunks:
            for choice in chunk.choices:
                finish = choice.finish_reason or finish
    if finish is None:
        raise RuntimeError("the stream ended without a finish_reason")


def _short(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="The capital of France is", max_tokens=8)
    if answer.choices[0].finish_reason is None or not answer.usage or not answer.usage.completion_tokens:
        raise RuntimeError(f"an answer without an end: {answer}")


def _fresh(url: str, model: str, key: str) -> None:
    """A connection of its own for one request, as curl makes it."""
    body = {"model": model, "prompt": "One, two, three,", "max_tokens": 4}
    headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
    answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=TIMEOUT)
    if answer.status_code != 200 or not answer.json()["choices"][0]["finish_reason"]:
        raise RuntimeError(f"{answer.status_code} {answer.text[:200]}")


@contextmanager
def traffic(url: str, model: str, *, key: str = "none", pause: float = 0.25, tokens: int = 48) -> Iterator[Report]:
    """Streams, short requests on a kept connection and short ones on new connections, each in a thread of its own.

    Yields when each kind has had an answer; at the end what is under way is waited for, and what does not end in time
    has failed.

    Args:
        url: without /v1.
        model: the served name.
        pause: seconds between two requests of one thread.
        tokens: of each stream.
    """
    report = Report()
    stop = threading.Event()
    lock = threading.Lock()

    def run(kind: str, ask: Callable[[], None]) -> None:
        while not stop.is_set():
            began = report.now()
            with lock:
                report.started[kind] += 1
            try:
                ask()
            except Exception as error:
                words = f"{type(error).__name__}: {error}" + (f" ({error.__cause__!r})" if error.__cause__ else "")
                with lock:
                    report.failed.append(Failed(kind, began, report.now(), words[:400]))
            else:
                with lock:
                    report.completed[kind] += 1
                    report.slowest = max(report.slowest, report.now() - began)
            stop.wait(pause)

    kept, streaming = _client(url, key), _client(url, key)
    kinds = {
        "stream": lambda: _stream(streaming, model, tokens),
        "short": lambda: _short(kept, model),
        "fresh": lambda: _fresh(url, model, key),
    }
    threads = [
        threading.Thread(target=run, args=pair, name=f"traffic-{pair[0]}", daemon=True) for pair in kinds.items()
    ]
    for thread in threads:
        thread.start()
    try:
        report.more(1)
        yield report
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT + 10)
            if thread.is_alive():
                report.failed.append(Failed(thread.name, 0, report.now(), "still waiting for its answer"))
        kept.close()
        streaming.close()
