"""A checkpoint against what an endpoint serves of it: by token ids, by spelled tokens, and where it cannot be."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from plimsoll.cli.main import main
from plimsoll.quantjob.data import Tokens, tokens_of
from plimsoll.quantjob.endpoint import Endpoint, EndpointError
from plimsoll.quantjob.endpoint_evaluation import coarse_divergence, compare_endpoint
from plimsoll.quantjob.evaluation import compare
from plimsoll.quantjob.streamed import StreamedModel
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.endpoint import serving


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("endpoint")
    return make_checkpoint(root / "one"), make_checkpoint(root / "two", seed=1)


@pytest.fixture(scope="module")
def url(folders: tuple[Path, Path]) -> Iterator[str]:
    with serving(folders[1]) as endpoint:
        yield endpoint.url


@pytest.fixture(scope="module")
def tokenizer(folders: tuple[Path, Path]) -> Tokenizer:
    return load_tokenizer(open_checkpoint(folders[1]))


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return tokens_of(np.random.default_rng(1).integers(0, VOCAB_SIZE, (3, 20)).astype(np.int64), "random")


@contextmanager
def older_server(url: str, answer: int | None = None) -> Iterator[str]:
    """In front of `url`, a server that knows no `prompt_logprobs` and five alternatives at most; or fails so."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            self._send(200, httpx.get(f"{url.removesuffix('/v1')}{self.path}").json())

        def do_POST(self) -> None:
            body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if answer is not None:
                return self._send(answer, {"choices": [{"text": ""}]} if answer == 200 else {"error": "no"})
            if "prompt_logprobs" in body or body["logprobs"] > 5:
                return self._send(400, {"error": {"message": "unknown field, or too many"}})
            self._send(200, httpx.post(f"{url}/completions", json=body, timeout=60).json())

        def _send(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_endpoint_has_the_figures_of_the_checkpoint_it_serves(
    folders: tuple[Path, Path], url: str, tokenizer: Tokenizer, tokens: Tokens
) -> None:
    one, two = (StreamedModel(open_checkpoint(folder)) for folder in folders)
    wanted = compare(one, {"two": two}, tokens)
    here = wanted.others["two"]
    endpoint = Endpoint(url, tokenizer)
    found = compare_endpoint(one, endpoint, tokens)
    served = found.others["endpoint"]
    assert endpoint.top == 20
    assert (found.loss == wanted.loss).all()
    np.testing.assert_allclose(served.loss, here.loss, atol=1e-3)
    assert (served.agrees == here.agrees).all()
    assert (served.kl <= here.kl + 1e-4).all(), "what is known of a few tokens is a lower bound"
    assert served.kl_mean > 0
    assert "20 likeliest" in served.note
    itself = compare_endpoint(two, endpoint, tokens).others["endpoint"]
    assert itself.kl.max() < 1e-4
    assert itself.agrees.all()
    endpoint.close()


def test_a_server_that_only_spells_tokens_is_understood(
    folders: tuple[Path, Path], url: str, tokenizer: Tokenizer, tokens: Tokens
) -> None:
    two = StreamedModel(open_checkpoint(folders[1]))
    with older_server(url) as older:
        endpoint = Endpoint(older, tokenizer)
        found = compare_endpoint(two, endpoint, tokens).others["endpoint"]
        endpoint.close()
    assert endpoint.top == 5
    np.testing.assert_allclose(found.loss, compare(two, {}, tokens).loss, atol=1e-3)
    assert found.kl.max() < 1e-4
    # Bytes that are half a character read alike: which of them was likeliest is not told.
    assert found.top1_agreement > 0.3


@pytest.mark.parametrize(
    ("answer", "message"), [(200, "gives no log-probabilities"), (500, "HTTP 500"), (400, "HTTP 400")]
)
def test_a_server_that_does_not_score_prompts_is_named(
    answer: int, message: str, url: str, tokenizer: Tokenizer, tokens: Tokens
) -> None:
    with older_server(url, answer) as broken, pytest.raises(EndpointError, match=message) as caught:
        Endpoint(broken, tokenizer).score(tokens.windows.tolist())
    assert broken in str(caught.value)
    with older_server(url, answer) as broken, pytest.raises(EndpointError, match=message):
        Endpoint(broken, tokenizer).check([0] * 20)


def test_a_server_that_scores_passes_the_check_before_work(url: str, tokenizer: Tokenizer) -> None:
    Endpoint(url, tokenizer).check([0] * 20)
    with older_server(url) as older:
        Endpoint(older, tokenizer).check([0] * 20)


def test_an_endpoint_that_does_not_score_is_refused_before_any_text_is_written(
    folders: tuple[Path, Path], url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(*arguments: object, **options: object) -> None:
        raise AssertionError("text is written")

    monkeypatch.setattr("plimsoll.quantjob.selftext._engine", write)
    for answer, message in ((200, "gives no log-probabilities"), (400, "refuses to score a prompt: HTTP 400")):
        with older_server(url, answer) as broken, pytest.raises(SystemExit) as ended:
            main(["eval", str(folders[0]), broken, "--samples", "2", "--seqlen", "24"])
        assert ended.value.code == 1
        assert message in capsys.readouterr().err


def test_nobody_there_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(EndpointError, match=r"nothing answers.*http://127.0.0.1:9/v1"):
        Endpoint("http://127.0.0.1:9", tokenizer)


@given(st.integers(0, 2**32), st.integers(1, 12), st.floats(0, 3))
def test_a_divergence_of_few_tokens_is_at_most_that_of_all(seed: int, known: int, apart: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    p = torch.log_softmax(logits[0], 0)
    q = torch.log_softmax(logits[0] + apart * logits[1], 0)
    top = {int(token): float(q[token]) for token in q.topk(known).indices}
    whole = float((p.exp() * (p - q)).sum())
    assert 0 <= coarse_divergence(p, top) <= whole + 1e-4
    everything = {token: float(q[token]) for token in range(12)}
    assert coarse_divergence(p, everything) == pytest.approx(whole, abs=1e-4)
