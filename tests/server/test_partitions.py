"""A cached prefix is a hit for requests of the same key and the same `cache_salt` alone."""

import itertools
from typing import Any

import httpx

from tests.support.endpoint import Endpoint

#: Each test has its own prefix: the cache outlives it.
prefixes = itertools.count(10)


def cached(endpoint: Endpoint, prompt: list[int], headers: dict[str, str] | None = None, **extra: Any) -> int:
    """Tokens of `prompt` that came from the cache."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0, **extra}
    answer = httpx.post(f"{endpoint.url}/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_what_one_key_asked_is_no_hit_for_another(keyed: Endpoint) -> None:
    prompt = [next(prefixes)] * 64
    assert cached(keyed, prompt, bearer("secret")) == 0
    assert cached(keyed, prompt, bearer("secret")) > 0
    assert cached(keyed, prompt, bearer("other")) == 0
    assert cached(keyed, prompt, bearer("other")) > 0
    # The key counts, not how it is sent.
    assert cached(keyed, prompt, {"x-api-key": "other"}) > 0


def test_a_salt_divides_the_cache_of_each_key(keyed: Endpoint, tiny: Endpoint) -> None:
    for endpoint, headers in ((tiny, None), (keyed, bearer("secret"))):
        prompt = [next(prefixes)] * 64
        assert cached(endpoint, prompt, headers) == 0
        assert cached(endpoint, prompt, headers, cache_salt="mine") == 0
        assert cached(endpoint, prompt, headers, cache_salt="mine") > 0
        assert cached(endpoint, prompt, headers, cache_salt="yours") == 0
        assert cached(endpoint, prompt, headers) > 0
    assert cached(keyed, prompt, bearer("other"), cache_salt="mine") == 0


def test_chats_are_divided_as_well_and_answer_the_same(keyed: Endpoint) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "w" * 60}], "max_tokens": 4, "temperature": 0}
    found = []
    for key, salt in (("secret", None), ("secret", None), ("other", None), ("secret", "s"), ("secret", "s")):
        answer = httpx.post(
            f"{keyed.url}/chat/completions", json=chat | {"cache_salt": salt}, headers=bearer(key)
        ).json()
        found.append((answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, answer["choices"][0]["message"]))
    assert [hit for hit, _ in found] == [False, True, False, False, True]
    assert all(message == found[0][1] for _, message in found)


def test_neither_key_nor_salt_reaches_the_engine(keyed: Endpoint) -> None:
    seen = []
    engine = keyed.service.engine
    send, engine.generate = engine.generate, lambda request: (seen.append(request.params.cache_salt), send(request))[1]
    try:
        cached(keyed, [next(prefixes)] * 3, bearer("secret"), cache_salt="salty")
        cached(keyed, [next(prefixes)] * 3, bearer("secret"))
    finally:
        engine.generate = send
    assert len(set(seen)) == 2
    assert all(len(salt) == 64 and "secret" not in salt and "salty" not in salt for salt in seen)
