"""`plimsoll chat` as a person uses it: a process, lines typed into it, Ctrl-C."""

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.cli.main import main
from tests.support.checkpoints import make_checkpoint
from tests.support.endpoint import Endpoint, eventually, serving

CHAT = [sys.executable, "-m", "plimsoll.cli.main", "chat"]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = make_checkpoint(tmp_path_factory.mktemp("chat") / "tiny", max_position_embeddings=4096)
    with serving(folder) as running:
        yield running


def typed(endpoint: Endpoint, lines: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*CHAT, "--url", endpoint.root, "--temperature", "0", "--max-tokens", "8", *options]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)


def test_answers_each_line_and_leaves_on_exit(endpoint: Endpoint) -> None:
    done = typed(endpoint, "Hello\nAnd again\n/exit\nnever sent\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    assert "tiny" in done.stderr


def test_clear_forgets_what_was_said(endpoint: Endpoint) -> None:
    once = typed(endpoint, "Hello\n").stdout
    assert typed(endpoint, "Hello\n/clear\nHello\n").stdout == once * 2
    assert typed(endpoint, "Hello\nHello\n").stdout != once * 2


def test_a_system_prompt_is_sent(endpoint: Endpoint) -> None:
    plain = typed(endpoint, "Hello\n").stdout
    spoken = typed(endpoint, "Hello\n", "--system", "Be brief.").stdout
    assert spoken != plain
    assert typed(endpoint, "/system Be brief.\nHello\n").stdout == spoken


def test_commands_that_do_not_exist_are_not_sent(endpoint: Endpoint) -> None:
    done = typed(endpoint, "/nonsense\n\n/help\n")
    assert done.stdout == ""
    assert "/nonsense" in done.stderr


def goes_on(endpoint: Endpoint, question: str) -> bool:
    options = {"model": endpoint.model, "temperature": 0, "max_tokens": 2000}
    messages = [{"role": "user", "content": question}]
    status, answer = endpoint.post("/v1/chat/completions", options | {"messages": messages})
    assert status == 200, answer
    return bool(answer["choices"][0]["finish_reason"] == "length")


def test_control_c_stops_the_answer_and_not_the_chat(endpoint: Endpoint) -> None:
    # Random weights end some answers at once; which ones is the same every time.
    said = (f"Tell me everything about {number}" for number in itertools.count())
    question = next(words for words in said if goes_on(endpoint, words))
    command = [*CHAT, "--url", endpoint.root, "--temperature", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as chat:
        assert chat.stdin is not None
        chat.stdin.write(f"{question}\n".encode())
        chat.stdin.flush()
        eventually(lambda: endpoint.service.engine.stats.running == 1)
        os.kill(chat.pid, signal.SIGINT)
        eventually(endpoint.idle)
        assert chat.poll() is None
        chat.stdin.write(b"/exit\n")
        chat.stdin.flush()
        assert chat.wait(20) == 0


def test_a_question_the_server_refuses_is_shown_and_forgotten(endpoint: Endpoint) -> None:
    done = typed(endpoint, "word " * 6000 + "\nHello\n")
    assert done.returncode == 0
    assert "maximum context length" in done.stderr
    assert done.stdout == typed(endpoint, "Hello\n").stdout


def test_nothing_at_the_address_is_said_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(SystemExit) as ended:
            main(["chat", "--url", f"http://127.0.0.1:{unused.getsockname()[1]}"])
    assert ended.value.code == 1
    words = capsys.readouterr().err
    assert "nothing answers there" in words
    assert "Traceback" not in words


def test_a_missing_key_file_is_said_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--api-key-file", str(tmp_path / "absent")])
    assert "--api-key-file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--url", "--model-name", "--api-key-file"])
def test_options_of_an_endpoint_are_refused_beside_a_model(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["chat", str(tmp_path), option, "x"])
    assert f"{option}: is of an endpoint, and MODEL starts another one here (found 'x')" in (
        " ".join(capsys.readouterr().err.split())
    )
