"""What every client is asked to do: call one tool and answer with its result, and fill in one schema."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

TEMPERATURE = 21
"""What the tool answers, in degrees Celsius."""
QUESTION = "What is the temperature in Paris?"
PASSAGE = "Anna is 31 years old and lives in Paris. Extract the person."

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "unit": {"type": "string", "enum": ["C"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_temperature",
        "description": "The temperature in a city now.",
        "parameters": PARAMETERS,
    },
}


class Person(BaseModel):
    """A person in the passage."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Anna", "Bert"]
    age: int
    city: Literal["Paris", "Rome"]


def get_temperature(city: Literal["Paris", "Rome"], unit: Literal["C"]) -> str:
    """The temperature in a city now."""
    assert city in ("Paris", "Rome")
    assert unit == "C"
    return f"{TEMPERATURE} degrees"


def assert_called(name: str, arguments: Any) -> None:
    """The call is one of `get_temperature` with arguments that its schema allows."""
    assert name == "get_temperature"
    assert isinstance(arguments, dict)
    assert arguments.keys() == {"city", "unit"}
    get_temperature(**arguments)


def assert_extracted(person: Any) -> None:
    """All fields hold values that the schema allows; `person` is a mapping or an object."""
    values = person if isinstance(person, dict) else person.model_dump()
    assert Person.model_validate(values, strict=True)
