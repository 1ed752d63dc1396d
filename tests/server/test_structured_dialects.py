"""Structured answers through the openai and anthropic clients' newer APIs, on the real model."""

from typing import Any

import pydantic

from tests.support.endpoint import Endpoint


class City(pydantic.BaseModel):
    """What is asked for."""

    name: str
    large: bool


def test_a_response_is_parsed_into_a_model(smol: Endpoint) -> None:
    parsed = smol.openai.responses.parse(
        model="smol", input="Is Oslo a large city?", text_format=City, temperature=0, max_output_tokens=60
    )
    assert isinstance(parsed.output_parsed, City)
    with smol.openai.responses.stream(
        model="smol", input="Is Oslo a large city?", text_format=City, temperature=0, max_output_tokens=60
    ) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_a_message_is_parsed_into_a_model(smol: Endpoint) -> None:
    parsed = smol.anthropic.messages.parse(
        model="smol", messages=[{"role": "user", "content": "Is Oslo a large city?"}], output_format=City,
        max_tokens=60, extra_body={"temperature": 0},
    )  # fmt: skip
    assert isinstance(parsed.parsed_output, City)


def test_a_schema_that_cannot_be_compiled_blames_the_field(smol: Endpoint) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(["}}}
    body: dict[str, Any] = {"model": "smol", "input": "x", "max_output_tokens": 1}
    body["text"] = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    status, answer = smol.post("/v1/responses", body)
    assert (status, answer["error"]["param"]) == (400, "text.format")
