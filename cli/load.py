"""Load on an OpenAI endpoint: streamed requests, each timed token by token.

Arrivals are either closed loop (`concurrency` requests in flight, a new one when one ends) or open loop (a Poisson
process of `rate` requests a second; a slow endpoint does not slow it down). All times are seconds of one clock.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import msgspec
import numpy as np

from plimsoll.checkpoint.answers import IDENTITY, pieces_later
from plimsoll.cli.events import EventLines

#: Chunks of text in one answer: more than any model's context holds is no answer.
MOST_CHUNKS = 1 << 21
#: Tokens that an endpoint may say it counted.
MOST_TOKENS = 1 << 40

#: Common words, one token each in most vocabularies; a prompt of them is about as many tokens as words.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea kid body "
    "information back parent face others level office door health person art war history party result change morning "
    "reason research girl guy moment air teacher force education"
).split()


@dataclass(frozen=True)
class Target:
    """Where requests go. `url` ends in `/v1`; `extra` is added to each request's body."""

    url: str
    model: str
    key: str | None = None
    api: Literal["chat", "completions"] = "chat"
    output_tokens: int = 128
    timeout: float = 600.0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """One request. `started` counts from the start of the load; the others from the request's own start."""

    started: float
    first: float | None = None
    """Until the first chunk that carries text."""
    gaps: list[float] = field(default_factory=list)
    """Between chunks that carry text, after the first."""
    total: float = 0.0
    prompt_tokens: int | None = None
    """As the endpoint counts them; None when it does not tell."""
    output_tokens: int = 0
    """As the endpoint counts them, or the number of chunks when it does not tell."""
    counted: bool = False
    """Whether `tokens` is the endpoint's own count."""
    error: str | None = None
    """What kind of failure, for counting; None is success."""


def random_prompts(count: int, words: int, seed: int) -> list[str]:
    """Prompts that share no beginning, so that no prefix cache helps unless it is asked to."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which each of `count` requests of a Poisson process of `rate` a second arrives."""
    draw = random.Random(seed)
    return list(itertools.accumulate((draw.expovariate(rate) for _ in range(count - 1)), initial=0.0))


async def run(
    target: Target,
    prompts: Sequence[str],
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[list[Outcome], float]:
    """Sends every prompt once; outcomes in the order of `prompts`, and the seconds from first start to last end."""
    outcomes: list[Outcome | None] = [None] * len(prompts)
    headers = IDENTITY | ({"Authorization": f"Bearer {target.key}"} if target.key else {})
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(target.timeout, connect=10)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as client:
        start = time.perf_counter()

        async def send(index: int) -> None:
            outcome = await stream(client, target, prompts[index], start)
            outcomes[index] = outcome
            on_done(outcome)

        if rate is not None:

            async def later(index: int, moment: float) -> None:
                await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                await send(index)

            await asyncio.gather(*(later(i, m) for i, m in enumerate(arrivals(len(prompts), rate, seed))))
        else:
            waiting = iter(range(len(prompts)))

            async def worker() -> None:
                for index in waiting:
                    await send(index)

            await asyncio.gather(*(worker() for _ in range(min(concurrency or 1, len(prompts)))))
        seconds = time.perf_counter() - start
    return [outcome for outcome in outcomes if outcome is not None], seconds


async def stream(client: httpx.AsyncClient, target: Target, prompt: str, origin: float) -> Outcome:
    """Send one streamed request. Failures are in the outcome, never raised."""
    begin = time.perf_counter()
    outcome = Outcome(started=begin - origin)
    path, body = _request(target, prompt)
    finished = False
    last = begin
    try:
        async with client.stream("POST", f"{target.url}{path}", json=body) as answer:
            if answer.status_code != 200:
                outcome.error = f"HTTP {answer.status_code}"
            else:
                async for data in _events(answer):
                    if data == "[DONE]":
                        finished = True
                        break
                    now = time.perf_counter()
                    chunk = msgspec.json.decode(data)
                    if "error" in chunk:
                        outcome.error = "error in stream"
                        break
                    if usage := chunk.get("usage"):
                        outcome.prompt_tokens = _count(usage.get("prompt_tokens"))
                        outcome.output_tokens = _count(usage.get("completion_tokens")) or outcome.output_tokens
                        outcome.counted = True
                    if any(_texts(chunk)):
                        if outcome.first is None:
                            outcome.first = now - begin
                        else:
                            outcome.gaps.append(now - last)
                            if len(outcome.gaps) > MOST_CHUNKS:
                                raise ValueError("an answer that never ends")
                        last = now
                if not finished and outcome.error is None:
                    outcome.error = "stream cut short"
    except httpx.TimeoutException:
        outcome.error = "timeout"
    except httpx.ConnectError:
        outcome.error = "connection refused"
    except httpx.HTTPError:
        outcome.error = "connection lost"
    except (ValueError, AttributeError, TypeError, RecursionError):
        outcome.error = "not an OpenAI stream"
    outcome.total = time.perf_counter() - begin
    if not outcome.counted:
        outcome.output_tokens = len(outcome.gaps) + (outcome.first is not None)
    if outcome.error is None and outcome.first is None:
        outcome.error = "empty answer"
    return outcome


async def _events(answer: httpx.Response) -> AsyncIterator[str]:
    lines = EventLines()
    async for received in pieces_later(answer):
        for data in lines.feed(received):
            yield data
    for data in lines.close():
        yield data


def _request(target: Target, prompt: str) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"model": target.model, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"max_tokens": target.output_tokens, "temperature": 0.0, **target.extra}
    if target.api == "chat":
        return "/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}
    return "/completions", body | {"prompt": prompt}


def _count(value: Any) -> int | None:
    """Tokens, as an endpoint counts them. Raises ValueError for what is no count."""
    if value is not None and not (type(value) is int and 0 <= value <= MOST_TOKENS):
        raise ValueError("no number of tokens")
    return value


def _texts(chunk: dict[str, Any]) -> Iterator[str | None]:
    for choice in chunk.get("choices", ()):
        # Reasoning models stream their thoughts under a name of their own; those are tokens too.
        delta = choice.get("delta") or {}
        yield choice.get("text") or delta.get("content") or delta.get("reasoning_content")


def percentiles(values: Sequence[float], points: Sequence[float] = (50, 90, 95, 99)) -> dict[str, float]:
    """Mean, `p50`… and maximum, interpolated between neighbours; empty for no values."""
    if not values:
        return {}
    found = zip(points, np.percentile(values, points).tolist(), strict=True)
    return {"mean": sum(values) / len(values), **{f"p{point:g}": value for point, value in found}, "max": max(values)}


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Throughput over `seconds`, latencies of the requests that succeeded, failures counted by kind."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    output = sum(outcome.output_tokens for outcome in good)
    prompt = sum(outcome.prompt_tokens or 0 for outcome in good)
    return {
        "requests": len(outcomes),
        "succeeded": len(good),
        "errors": dict(errors),
        "seconds": seconds,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "tokens_counted_by_endpoint": all(outcome.counted for outcome in good),
        "requests_per_second": len(good) / seconds,
        "output_tokens_per_second": output / seconds,
        "total_tokens_per_second": (output + prompt) / seconds,
        "time_to_first_token": percentiles([o.first for o in good if o.first is not None]),
        "inter_token_latency": percentiles([gap for o in good for gap in o.gaps]),
        "time_per_output_token": percentiles(
            [(o.total - o.first) / (o.output_tokens - 1) for o in good if o.first is not None and o.output_tokens > 1]
        ),
        "end_to_end": percentiles([o.total for o in good]),
    }
