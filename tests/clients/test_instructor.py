"""instructor: each of its modes that an OpenAI-compatible server can serve."""

import instructor
import openai
import pytest

from tests.clients.conftest import Server
from tests.clients.task import PASSAGE, Person, assert_extracted

MODES = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)


@pytest.mark.parametrize("mode", MODES)
def test_fills_in_a_schema(server: Server, mode: instructor.Mode) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0), mode=mode)
    settings = {
        "model": server.model, "temperature": 0, "max_tokens": 100, "max_retries": 0, "response_model": Person,
        "messages": [{"role": "user", "content": PASSAGE}],
    }  # fmt: skip
    assert_extracted(client.create(**settings))
    assert_extracted(list(client.create_partial(**settings))[-1])
