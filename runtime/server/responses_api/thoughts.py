"""Thoughts that a client carries from one request to the next, as a reasoning item's `encrypted_content`.

Nothing is stored here, so a thought comes back only if the client replays it. Codex replays nothing of a reasoning
item but `encrypted_content`. The thought is the client's own, so it is encoded, not encrypted.
"""

import base64
import binascii

_PREFIX = "plimsoll:"


def sealed(thought: str) -> str:
    """The `encrypted_content` of a thought."""
    return _PREFIX + base64.b64encode(thought.encode()).decode()


def unsealed(content: str) -> str:
    """The thought in what `sealed` made; empty for the content of another server."""
    if not content.startswith(_PREFIX):
        return ""
    try:
        return base64.b64decode(content.removeprefix(_PREFIX), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
