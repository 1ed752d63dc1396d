"""What an endpoint or a person writes is shown as it is, whatever a terminal library or a line splitter makes of it."""

import contextlib
import io
import json
import logging
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import structlog

from plimsoll.cli import load_line
from plimsoll.cli.main import main
from plimsoll.cli.screen import console
from plimsoll.operator import log as operator_log
from plimsoll.runtime.server import log as server_log
from tests.support.quiet import own_logging

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


@contextlib.contextmanager
def listening(kind: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server of this kind."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    with listening(OtherServer) as url:
        yield url


#: Writes the clipboard, clears the screen, sets the title, in both lengths; turns text around; ends as it began.
ESCAPES = "\x1b]52;c;aGk=\x07\x9d52;c;aGk=\x9c\x1b[2J\x9b2J\x1b]0;x\x1b\\\x7f\b\r\x00\u202eabc\u2066d\u2069"


class SteeringServer(OtherServer):
    """Writes escape sequences wherever it can, some of them in two pieces."""

    def do_GET(self) -> None:
        self.answer(json.dumps({"object": "list", "data": [{"id": f"model{ESCAPES}"}]}), "application/json")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = str(asked.get("messages"))
        if "refuse" in words or not asked.get("messages"):
            self.answer(json.dumps({"error": {"message": f"no{ESCAPES}thing"}}), "application/json", 400)
            return
        if "page" in words:
            self.answer(f"bad{ESCAPES}gateway", "text/html", 502)
            return
        chunks: list[dict[str, object]] = [
            {"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("tab\there\n", *ESCAPES, ESCAPES)
        ]
        if "break" in words:
            chunks.append({"error": {"message": f"broke{ESCAPES}down"}})
        self.answer("".join(f"data:{json.dumps(chunk)}\n\n" for chunk in chunks), "text/event-stream")


def steers(text: str) -> list[str]:
    """What of `text` a terminal would obey: control characters, C1 and directions; not tabs and line ends."""
    return [mark for mark in text if mark not in "\t\n" and unicodedata.category(mark) in ("Cc", "Cf")]


@pytest.fixture(scope="module")
def steering() -> Iterator[str]:
    with listening(SteeringServer) as url:
        yield url


def test_no_text_of_an_endpoint_steers_the_terminal(
    steering: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"hello\nrefuse\npage\nbreak\n/no{ESCAPES}\n/exit\n"
    assert run(["chat", "--url", steering], lines, monkeypatch) == 0
    shown = capsys.readouterr()
    assert "tab\there\n]52;c;aGk=" in shown.out
    for words in ("model]52", "no]52", "bad]52", "broke]52", "no such command: /no]52"):
        assert words in shown.err
    assert not steers(shown.out + shown.err)
    arguments = ["bench", "--url", steering, "-n", "1", "--warmup", "0", "--model", f"x{ESCAPES}"]
    run(arguments, "", monkeypatch)
    shown = capsys.readouterr()
    assert not steers(shown.out + shown.err)


def test_no_name_of_a_file_or_an_option_steers_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = ESCAPES.replace("\x00", "")
    folder = tmp_path / f"a{name}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": f"odd{name}", "architectures": [f"Odd{name}"]}))
    for arguments in (
        ["inspect", str(folder)], ["serve", str(folder)], ["convert", str(folder), str(tmp_path / "out")],
        ["quantize", str(folder), "--work-dir", str(tmp_path / "work")], ["plan", "-f", str(folder / "none.yaml")],
        ["chat", "--url", f"http://127.0.0.1:1/{name}"],
        ["fetch", f"file://{folder}", "--into", str(tmp_path / "into")],
    ):  # fmt: skip
        assert run(arguments, "", monkeypatch) != 0, arguments[0]
        shown = capsys.readouterr()
        assert shown.err.strip()
        assert not steers(shown.out + shown.err), arguments[0]


@pytest.mark.parametrize("configure", [lambda: server_log.configure("info"), lambda: operator_log.configure("INFO")])
def test_no_text_in_a_log_steers_the_terminal(configure: Callable[[], None]) -> None:
    with own_logging(), contextlib.redirect_stderr(io.StringIO()) as written:
        configure()
        structlog.get_logger("plimsoll.server").warning(f"said {ESCAPES}", path=f"/{ESCAPES}")
        logging.getLogger("library").warning("said %s", ESCAPES)
    lines = written.getvalue()
    assert lines.count("\n") == 2
    assert not steers(lines)


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
    # NEL steers a terminal; the other line ends are text to it.
    assert shown.out == "".join(PIECES).replace("\x85", "") + "\n"
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
            "asStored": "[/]codes",
            "activations": "[/]rows",
            "device": {"kind": "cpu", "total": 4, "kernels": "plain torch"}, "workspace": {"[/]part": 1}, "inUse": 4,
            "hostBlocks": 0, "kvTokens": 1, "blocks": 1, "blockSize": 16, "blockBytes": 1,
            "concurrentRequests": 1, "maxLength": 1,
            "maxLengthFrom": "[/x]", "cachePrecision": "float",
            "rejected": [{"option": "[/]", "reason": ":rocket:"}], "notes": ["[/note]"],
            "notRunYet": None, "pods": {"count": 1, "ranksEach": 1},
        },
        screen,
    )  # fmt: skip
    shown = screen.file.getvalue()
    for words in ("[/] · [red]Odd", "[/]part", "([/]codes as stored)", "[/x]", "passed over [/]: :rocket:", "[/note]"):
        assert words in shown
