"""Text of strangers on its way to a terminal or a log: what would steer the terminal is taken out.

An escape sequence of an answer, a file's name or an error body could write the clipboard (OSC 52), repaint what is on
the screen, or set the window's title; an override of writing direction shows a text as another one.
"""

#: C0 but tab and line feed, DEL and C1; then embeddings, overrides and isolates of writing direction.
CONTROLS = (
    *(code for code in range(0x20) if code not in (0x09, 0x0A)), *range(0x7F, 0xA0),
    *range(0x202A, 0x202F), *range(0x2066, 0x206A),
)  # fmt: skip
_REMOVED = dict.fromkeys(CONTROLS)


def printable(text: str) -> str:
    """`text` without control characters; its lines and tabs stay."""
    return text if text.isascii() and text.isprintable() else text.translate(_REMOVED)
