"""Values as Python writes them, in a model's answer."""

import ast
import json
import warnings
from typing import Any

#: What JSON and Python call the same things.
_NAMES = {"true": True, "false": False, "null": None, "none": None}
#: Characters of one value; the parser's time and memory grow with them.
MOST_CHARS = 100_000


def python_value(text: str) -> Any:
    """The value of a literal: text, numbers, lists, dictionaries, `True`, and JSON's `true`, `false` and `null`.

    Raises ValueError for anything else: nothing is ever run.
    """
    if len(text) > MOST_CHARS:
        raise ValueError
    try:
        with warnings.catch_warnings():
            # An unknown escape is taken as it is written.
            warnings.simplefilter("ignore")
            return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, MemoryError, RecursionError, TypeError):
        raise ValueError from None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.UAdd(), operand=ast.Constant(value=int() | float() as value)):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            pairs = zip(keys, values, strict=True)
            return {str(key.value): _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
    raise ValueError


def literal(text: str) -> str:
    """A value of JSON as it is written, or one of Python as JSON. Raises ValueError where it is neither."""
    try:
        json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        try:
            return json.dumps(python_value(text), ensure_ascii=False, allow_nan=False)
        except (RecursionError, TypeError):
            raise ValueError from None
    return text.strip()


def _no_number(text: str) -> None:
    raise ValueError(text)
