"""Objects of a request whose fields are read one by one, by kind."""

from collections.abc import Iterator
from typing import Any

from plimsoll.runtime.server.errors import ApiError, invalid_value
from plimsoll.runtime.server.values import flag, kind_of, whole

#: Characters of a word that an error message quotes back: the name of a kind, never a prompt.
QUOTED = 40


class Given:
    """A JSON object of a request, and the path to it.

    Args:
        value: what the request has there.
        path: where that is, as `input[3].content`.

    Raises:
        ApiError: 400 where `value` is no object. Every method raises the same where a field is missing or of another
            kind.
    """

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise must_be(path, "an object", value)
        self.fields: dict[str, Any] = value
        self.path = path

    def __contains__(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def at(self, name: str) -> str:
        """The path to a field."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        """The field as it is; None where it is absent."""
        return self.fields.get(name)

    def text(self, name: str, default: str | None = None) -> str:
        """A string; `default`, if there is one, where the field is absent or null."""
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise must_be(self.at(name), "a string", value)
        return value

    def word(self, name: str, default: str | None = None) -> str:
        """A string that is not empty."""
        value = self.text(name, default)
        if not value:
            raise invalid_value(f"Invalid value for {self.at(name)}: must not be empty.", self.at(name))
        return value

    def one_of(self, name: str, *allowed: str, default: str | None = None) -> str:
        """One of the strings `allowed`."""
        value = self.text(name, default)
        if value not in allowed:
            raise invalid_value(
                f"Invalid value for {self.at(name)}: must be one of {', '.join(allowed)} (found {quoted(value)}).",
                self.at(name),
            )
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = flag(self.fields.get(name))
        if value is None:
            return default
        if not isinstance(value, bool):
            raise must_be(self.at(name), "a boolean", value)
        return value

    def whole(self, name: str, least: int) -> int:
        """A whole number of `least` or more."""
        value = whole(self.fields.get(name))
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise must_be(self.at(name), f"a whole number of {least} or more", value)
        return value

    def object(self, name: str) -> "Given":
        """An object."""
        return Given(self.fields.get(name), self.at(name))

    def objects(self, name: str) -> "Iterator[Given]":
        """The members of a list of objects."""
        yield from objects(self.fields.get(name), self.at(name))


def objects(value: Any, path: str) -> Iterator[Given]:
    """The members of a list of objects. Raises ApiError 400 where `value` is none."""
    if not isinstance(value, list):
        raise must_be(path, "a list", value)
    for index, member in enumerate(value):
        yield Given(member, f"{path}[{index}]")


def must_be(path: str, what: str, value: Any) -> ApiError:
    """400: the field at `path` holds a `value` that is not `what`."""
    return invalid_value(f"Invalid value for {path}: must be {what} (found {kind_of(value)}).", path)


def quoted(word: str) -> str:
    """The beginning of a word that a client wrote, for an error message."""
    return repr(word[:QUOTED])
