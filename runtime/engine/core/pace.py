"""How many prompt tokens join the streams that run, so that a long prompt does not make them stutter.

A step with a chunk of a prompt in it may take `SLOWDOWN` times what it takes without, or `SMOOTH` seconds if that is
more: a prompt and the streams then get about half of the machine each. What steps take is measured while they run (in
Sarathi-Serve, arXiv 2403.02310, a profile made before sets the chunk). No clock here: seconds are given.
"""

SLOWDOWN = 1.8
"""Under twice, with a margin for what a measurement is off by."""

SMOOTH = 0.02
"""Seconds between two tokens that no reader notices: fifty tokens a second."""

LEAST = 4
"""Prompt tokens that join a step regardless of their cost: a prompt always goes on."""

REFRESH = 32
"""After so many steps with prompts one has none, to see what the streams alone take by now."""

_SHARE = 0.25
"""Of a new measurement in what is remembered: one disturbed step changes little."""


class Pace:
    """What steps of so many streams take, and what a prompt token adds to one."""

    def __init__(self) -> None:
        self._alone: dict[int, float] = {}
        self._token = 0.0
        self._since = 0
        self._most = LEAST

    def allowed(self, streams: int) -> int:
        """Prompt tokens that may join a step of `streams` sequences in decode; 0 where it should have none."""
        alone = self._alone.get(streams)
        if alone is None or self._since >= REFRESH:
            return 0
        if not self._token:
            return LEAST
        target = max(SLOWDOWN * alone, SMOOTH) - alone
        # Twice the last one at most: what a token costs in few rows says little about many.
        return max(LEAST, min(int(target / self._token), 2 * self._most))

    def took(self, streams: int, prompt_tokens: int, seconds: float) -> None:
        """Learns what a step took. One without streams says nothing about what a prompt costs them."""
        if not streams:
            return
        alone = self._alone.get(streams)
        if not prompt_tokens:
            self._since = 0
            self._alone[streams] = seconds if alone is None else alone + _SHARE * (seconds - alone)
        elif alone is not None:
            self._since += 1
            # The end of a prompt is short and says nothing about what may come next.
            self._most = max(prompt_tokens, self._most // 2)
            token = max(seconds - alone, 0.0) / prompt_tokens
            self._token = self._token + _SHARE * (token - self._token) if self._token else token
