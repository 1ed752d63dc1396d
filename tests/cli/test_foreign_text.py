"""What an endpoint or a person writes is shown as it is, whatever a terminal library or a line splitter makes of it."""

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plimsoll.cli import load_line
from plimsoll.cli.main import main
from plimsoll.cli.screen import console

MODEL = "org/[/]model[red]:rocket:"
PIECES = ("one\u2028two", "\u2029three\x85", "four [/] [bold]:smile:")


class OtherServer(BaseHTTPRequestHandler):
    """An endpoint that is not ours: it leaves line ends of Unicode in its JSON, and no space after `data:`."""

    def do_GET(self) -> None:
        self.answer(json.dumps({"object": "list", "data": [{"id": MODEL}]}), "application/json")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "fail" in str(asked.get("messages")):
            self.answer(json.dumps({"error": {"message": "no [/] such [red] thing"}}), "application/json", 400)
            return
        chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in PIECES]
        words = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
        self.answer("".join(f"data:{text}\n\n" for text in [*words, "[DONE]"]), "text/event-stream")

    def answer(self, text: str, kind: str, status: int = 200) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), OtherServer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(arguments: list[str], typed: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_chat_shows_markup_and_every_line_end_as_they_are(
    other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "hello [/]\n/[/red] x\n/system [/]\nplease fail\n/exit\n"
    assert run(["chat", "--url", other], lines, monkeypatch) == 0
    shown = capsys.readouterr()
    assert shown.out == "".join(PIECES) + "\n"
    for words in (MODEL, "no such command: /[/red]", "no [/] such [red] thing"):
        assert words in shown.err.replace("\n", " ")


def test_a_benchmark_counts_every_chunk_of_such_a_stream(
    other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "--url", other, "-n", "2", "--warmup", "0", "--concurrency", "1"]
    assert run(arguments, "", monkeypatch) == 0
    assert "2 of 2 requests" in capsys.readouterr().out


def test_a_prompt_file_has_a_prompt_a_line_and_no_more(
    other: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plimsoll.cli import load

    sent: list[str] = []
    real = load.stream

    async def noted(client: object, target: object, prompt: str, origin: float) -> object:
        sent.append(prompt)
        return await real(client, target, prompt, origin)

    monkeypatch.setattr(load, "stream", noted)
    path = str(tmp_path / "prompts")
    Path(path).write_text("one\u2028half\r\ntwo\x85halves\n", encoding="utf-8", newline="")
    arguments = ["bench", "--url", other, "-n", "2", "--warmup", "0", "--concurrency", "1", "--prompt-file", path]
    assert run(arguments, "", monkeypatch) == 0
    assert sent == ["one\u2028half", "two\x85halves"]


def test_a_key_that_no_header_can_carry_is_refused_by_name(
    other: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    assert run(["chat", "--url", other], "/exit\n", monkeypatch) == 1
    words = capsys.readouterr().err
    assert "$OPENAI_API_KEY: holds a character that a header cannot carry" in words
    file = tmp_path / "keys"
    for text, status in (("schlüssel\n", 1), ("\ufeffplain\n", 0)):
        file.write_text(text, encoding="utf-8")
        assert run(["chat", "--url", other, "--api-key-file", str(file)], "/exit\n", monkeypatch) == status
        words += capsys.readouterr().err
    assert "--api-key-file: the key in line 1" in words
    assert "schl" not in words


def test_tables_and_headlines_show_brackets() -> None:
    screen = console()
    screen.file = io.StringIO()
    terms = {"context": 1, "weights": 1, "workspace": 1, "kvCache": 1, "headroom": 0}
    load_line.show(
        {
            "name": "[/]", "architecture": "[red]Odd", "precision": "bfloat16", "tensor": 1, "perDevice": terms,
            "device": {"kind": "cpu", "total": 4, "kernels": "plain torch"}, "workspace": {"[/]part": 1}, "inUse": 4,
            "kvTokens": 1, "blocks": 1, "blockSize": 16, "blockBytes": 1, "concurrentRequests": 1, "maxLength": 1,
            "maxLengthFrom": "[/x]", "rejected": [{"option": "[/]", "reason": ":rocket:"}], "notes": ["[/note]"],
            "notRunYet": None,
        },
        screen,
    )  # fmt: skip
    shown = screen.file.getvalue()
    for words in ("[/] · [red]Odd", "[/]part", "[/x]", "passed over [/]: :rocket:", "[/note]"):
        assert words in shown
