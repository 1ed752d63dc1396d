"""Whether a block is better copied to the host tier and back, or computed again, by figures of this machine."""

WEIGHT = 0.2
"""Of the latest step in the mean speed of prompts."""


def copying_pays(seconds_a_block: float, tokens_a_second: float, block_size: int) -> bool:
    """Whether a block is copied to the host and back in less time than its tokens are computed again.

    Args:
        seconds_a_block: measured, for one block one way.
        tokens_a_second: of prompts, as measured; 0 where none was measured yet: then copying is taken to pay.
    """
    return 2 * seconds_a_block * tokens_a_second < block_size


class CopyTimes:
    """Args:
    seconds_a_block: what copying a block one way took at start-up.
    block_size: tokens of a block.

    Attributes:
        tokens_a_second: of steps with a block of tokens or more, a moving mean; 0 before the first.
    """

    def __init__(self, seconds_a_block: float, block_size: int) -> None:
        self.seconds_a_block = seconds_a_block
        self.block_size = block_size
        self.tokens_a_second = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Takes in a step of `tokens` in which nothing was copied; one with few tokens says nothing of prompts."""
        if tokens < self.block_size or seconds <= 0:
            return
        found = tokens / seconds
        self.tokens_a_second += (found - self.tokens_a_second) * (WEIGHT if self.tokens_a_second else 1.0)

    @property
    def copying_pays(self) -> bool:
        """The verdict of now."""
        return copying_pays(self.seconds_a_block, self.tokens_a_second, self.block_size)
