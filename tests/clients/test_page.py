"""Every program in docs/clients.md runs as it is written, but for the server's address, key and model."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import Server

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
PROGRAMS = [
    pytest.param(language, program, id=section.splitlines()[0])
    for section in SECTIONS
    for language, program in re.findall(r"^```(python|js)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
]


def here(text: str, server: Server) -> str:
    """`text` with this server in place of the page's."""
    text = text.replace("http://127.0.0.1:8000", server.root).replace('"KEY"', f'"{server.key}"')
    return text.replace("smollm2", server.model)


@pytest.mark.parametrize(("language", "program"), PROGRAMS)
def test_a_program_of_the_page_runs(
    server: Server, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], language: str, program: str
) -> None:
    program = here(program, server)
    if language == "python":
        # Not in a process of its own: to import these packages takes longer than their requests.
        exec(compile(program, str(PAGE), "exec"), {"__name__": "page"})
        shown = capsys.readouterr().out
    else:
        path = request.getfixturevalue("node") / "page.mjs"
        path.write_text(program)
        done = subprocess.run(["node", str(path)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        shown = done.stdout
    assert shown.strip()


def test_the_page_has_programs() -> None:
    assert len(PROGRAMS) > 6
