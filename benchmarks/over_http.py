"""A server as contestant: started, measured through its OpenAI endpoint by `plimsoll bench`'s own client, stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.workload import Workload
from plimsoll.cli import load
from plimsoll.runtime.server import loop

START_SECONDS = 180


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(command: Sequence[str], url: str, ready: str, threads: int) -> Iterator[None]:
    """Runs `command` until the block ends; enters it once `url` + `ready` answers 200."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait(process, url + ready)
            yield
        except Exception as error:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            raise RuntimeError(f"{error}\n{log.read().decode(errors='replace')}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready after {START_SECONDS} s")


def _model(url: str) -> str:
    return str(httpx.get(f"{url}/v1/models", timeout=10).raise_for_status().json()["data"][0]["id"])


def measure(url: str, workload: Workload) -> dict[str, Any]:
    """All measures of the workload; tokens a second and seconds, one value a repeat."""
    model = _model(url)

    def ask(prompts: Sequence[str], tokens: int, concurrency: int) -> tuple[list[load.Outcome], float]:
        target = load.Target(f"{url}/v1", model, api="completions", output_tokens=tokens, extra={"ignore_eos": True})
        outcomes, seconds = loop.run(load.run(target, prompts, concurrency=concurrency))
        failed = [outcome.error for outcome in outcomes if outcome.error]
        short = [o.output_tokens for o in outcomes if o.error is None and o.output_tokens != tokens]
        if failed or short:
            raise RuntimeError(f"requests failed ({failed}) or were not {tokens} tokens long ({short})")
        return outcomes, seconds

    result: dict[str, Any] = {"first_token": {}, "prompt_tokens": {}}
    ask(workload.warmup, 8, workload.streams)
    alone = [ask([prompt], workload.output_tokens, 1) for prompt in workload.one_stream]
    result["prompt_tokens"]["short"] = alone[0][0][0].prompt_tokens
    result["one_stream"] = [workload.output_tokens / seconds for _, seconds in alone]
    result["one_stream_decode"] = [
        (o.output_tokens - 1) / (o.total - o.first) for outcomes, _ in alone for o in outcomes if o.first
    ]
    for size, prompts in workload.long.items():
        outcomes = [ask([prompt], 1, 1)[0][0] for prompt in prompts]
        result["first_token"][size] = [outcome.first for outcome in outcomes]
        result["prompt_tokens"][size] = outcomes[0].prompt_tokens
    batches = [ask(prompts, workload.output_tokens, len(prompts)) for prompts in workload.four]
    result["four"] = [len(workload.four[0]) * workload.output_tokens / seconds for _, seconds in batches]
    batches = [ask(prompts, workload.output_tokens, workload.streams) for prompts in workload.sixteen]
    result["sixteen"] = [workload.streams * workload.output_tokens / seconds for _, seconds in batches]
    gaps = [gap for outcomes, _ in batches for outcome in outcomes for gap in outcome.gaps]
    result["sixteen_gap"] = load.percentiles(gaps, (50, 99))
    _, seconds = ask(workload.sustained, workload.output_tokens, workload.streams)
    result["sustained"] = [len(workload.sustained) * workload.output_tokens / seconds]
    return result


def surprise(url: str, windows: Sequence[list[int]]) -> list[float]:
    """Nats of each token after a window's first, as our server gives them."""
    found: list[float] = []
    model = _model(url)
    for window in windows:
        asked = {"model": model, "prompt": window, "max_tokens": 1, "echo": True, "logprobs": 0}
        answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=300).raise_for_status().json()
        found += [-log for log in answer["choices"][0]["logprobs"]["token_logprobs"][1 : len(window)]]
    return found


def surprise_of_llama_server(url: str, windows: Sequence[list[int]]) -> list[float]:
    """As `surprise`. It says the probability of a token that it generates, so each is forced, which changes none."""
    found: list[float] = []
    with httpx.Client(base_url=url, timeout=300) as client:
        for window in windows:
            for at in range(1, len(window)):
                asked = {
                    "prompt": window[:at], "n_predict": 1, "n_probs": 1, "temperature": 0, "cache_prompt": True,
                    "logit_bias": [[window[at], 1000]], "samplers": ["temperature"],
                }  # fmt: skip
                answer = client.post("/completion", json=asked).raise_for_status().json()
                (token,) = answer["completion_probabilities"]
                assert token["id"] == window[at], "a forced token was not taken"
                found.append(-token["logprob"])
    return found


def measure_llama_server(binary: Path, model: Path, workload: Workload, threads: int) -> dict[str, Any]:
    port = free_port()
    context = workload.streams * (2000 + 2 * workload.output_tokens)
    command = [
        str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--threads", str(threads), "--threads-batch", str(threads),
        "--parallel", str(workload.streams), "--ctx-size", str(context),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with server(command, url, "/health", threads):
        return measure(url, workload) | {"surprise": surprise_of_llama_server(url, workload.windows)}
