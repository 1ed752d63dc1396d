"""`plimsoll serve`: what it refuses, what it says, and how it goes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from plimsoll.api.sizes import block_bytes
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.cli.main import main
from plimsoll.cli.serve import origins
from tests.support import quantized
from tests.support.checkpoints import make_checkpoint
from tests.support.endpoint import eventually

SERVE = [sys.executable, "-m", "plimsoll.cli.main", "serve"]
SMALL = ["--threads", "1", "--memory", "4Gi", "--kv-cache-bytes", "8Mi"]
SMALL += ["--cache-block-seq-len", "16", "--dtype", "float32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("serve") / "tiny", max_position_embeddings=2048)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        (["https://App.example/", "http://localhost:3000"], ("https://app.example", "http://localhost:3000")),
        (["https://a.example,https://b.example"], ("https://a.example", "https://b.example")),
        (['["https://a.example", "*"]'], ("https://a.example", "*")),
        (["*"], ("*",)),
        (["null"], ("null",)),
    ],
)
def test_origins_are_repeated_or_listed(options: list[str], allowed: tuple[str, ...]) -> None:
    assert origins(options) == allowed


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code in (1, 2)
    words = capsys.readouterr().err
    assert "Traceback" not in words
    return words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tp", "2", "--device", "cuda"], "--tp: a model spread over several GPUs"),
        (["--tp", "7"], "--tp: 4 attention heads cannot be split over 7 (found 7). Sizes that work: 1 to 4"),
        (["--tensor-parallel-size", "0"], "--tp: must be auto or a whole number from 1 to 64"),
        (["--tp", "two"], "--tp: must be auto or a whole number from 1 to 64"),
        (["--quant-policy", "3"], "--quant-policy"),
        (["--model-format", "awq"], "the checkpoint is hf"),
        (["--model-format", "onnx"], "--model-format"),
        (["--model-format", "gguf"], "the checkpoint is hf"),
        (["--cache-max-entry-count", "1.5"], "--kv-cache-bytes"),
        (
            ["--cache-max-entry-count", "0.8", "--kv-cache-bytes", "1Gi"],
            "--cache-max-entry-count: contradicts --kv-cache-bytes, which is the whole size (found 0.8). Leave one",
        ),
        (["--torch-rows", "16", "--deterministic"], "may depend on load, or leave out --torch-rows"),
        (["--torch-rows", "16", "--activation-precision", "int8"], "Leave out --torch-rows or this"),
        (["--cache-block-seq-len", "48"], "--cache-block-seq-len: must be"),
        (["--dtype", "int3"], "int3"),
        (["--device", "cuda:99"], "--device: "),
        (["--memory", "lots"], "lots"),
        (["--memory", "1Mi"], "MiB"),
        (["--session-len", "9999999"], "--session-len: the positions"),
        (["--log-level", "loud"], "--log-level"),
        (["--server-port", "70000"], "--server-port"),
        (["--allow-origins", "https://app.example,app.example"], "--allowed-origins: must be *, or a scheme"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_what_cannot_be_served_is_refused_in_plain_words(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert said in re.sub(r"\x1b\[[0-9;]*m", "", refusal(capsys, str(checkpoint), "--server-port", "0", *options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model-format", "gptq"], "the checkpoint is awq"),
        (["--model-format", "hf"], "the checkpoint is awq"),
        (["--model-format", "awq", "--dtype", "w8a16"], "--dtype: the checkpoint's weights are awq of 4 bits"),
        (["--model-format", "awq", "--memory", "1Mi"], "MiB"),
    ],
)
def test_words_for_a_quantized_checkpoint_are_held_against_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ)
    assert said in re.sub(r"\x1b\[[0-9;]*m", "", refusal(capsys, str(folder), "--server-port", "0", *options))


def test_a_policy_of_zero_keeps_floats_where_the_default_would_take_codes(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = open_checkpoint(checkpoint).facts
    # 24 blocks of floats, for a request of 32.
    held = str(24 * block_bytes(facts, 16, "float32"))
    asked = [*SMALL, "--kv-cache-bytes", held, "--session-len", "512"]
    words = " ".join(refusal(capsys, str(checkpoint), "--server-port", "0", *asked, "--quant-policy", "0").split())
    assert "a cache of 512 tokens takes" in words
    assert "--quant-policy 8" in words


def test_a_key_given_in_place_of_a_file_is_not_repeated(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = refusal(capsys, str(checkpoint), "--api-keys", "sk-very-secret")
    assert "--api-keys" in words
    assert "sk-very-secret" not in words


def test_a_missing_model_and_a_taken_port_are_said_plainly(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "MODEL: there is no such file" in refusal(capsys, str(tmp_path / "absent"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "--server-port" in refusal(capsys, str(checkpoint), "--server-port", port, *SMALL)


def test_two_ranks_serve_drain_on_sigterm_while_streaming_and_leave_no_process(checkpoint: Path) -> None:
    command = [*SERVE, str(checkpoint), "--server-port", "0", "--model-name", "named", "--tensor-parallel-size", "2"]
    command += [*SMALL, "--strict", "--allow-origins", "https://app.example, https://b.example:8443/"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(iter(server.stderr.readline, "")))
        reader.start()
        try:
            eventually(lambda: any("http://" in line for line in said), 60)
            url = next(found[0] for line in said if (found := re.search(r"http://[\d.:]+/v1", line)))
            processes = psutil.Process(server.pid).children(recursive=True)
            assert sum(any("rank_process" in word for word in one.cmdline()) for one in processes) == 1
            for origin, status in (("https://b.example:8443", 200), ("https://c.example", 403)):
                asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                assert httpx.options(f"{url}/chat/completions", headers=asked).status_code == status
            # Long enough that it runs on while the server is asked what it thinks of others.
            body = {"model": "named", "messages": [{"role": "user", "content": "secret words"}], "stream": True,
                    "max_tokens": 1500, "ignore_eos": True}  # fmt: skip
            assert httpx.post(f"{url}/chat/completions", json=body | {"max_tokens": 4000}).status_code == 400
            page = httpx.get(url.replace("/v1", "/metrics")).text
            assert 'plimsoll:tensor_parallel_size{model_name="named"} 2.0' in page
            assert re.search(r'rank_memory_bytes{model_name="named",part="weights",rank="1"} \d', page)
            with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as answer:
                lines = answer.iter_lines()
                next(lines)
                server.send_signal(signal.SIGTERM)
                eventually(lambda: httpx.get(url.replace("/v1", "/ready")).status_code == 503)
                assert httpx.post(f"{url}/chat/completions", json=body | {"stream": False}).status_code == 503
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason":"length"' in rest[-2]
            assert server.wait(20) == 0
            assert not [one for one in processes if one.is_running() and one.status() != "zombie"]
        finally:
            if server.poll() is None:
                os.kill(server.pid, signal.SIGKILL)
            reader.join()
    everything = "".join(said)
    assert "predicted" in everything
    assert "measured" in everything
    assert "secret words" not in everything
    logged = [json.loads(line) for line in said if line.startswith("{")]
    assert "kernels of 2 ranks" in " ".join(everything.split())
    assert next(line for line in logged if line["event"] == "ready")["ranks"] == 2
    assert any(line["event"] == "request" and line["status"] == 200 for line in logged)
