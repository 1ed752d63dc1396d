"""How families of models mark what they think before they answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thoughts:
    """Signs around a thought, and around the answer where the family has some."""

    begin: str
    end: str
    said: tuple[str, ...] = ()
    """Signs around the answer itself; they are dropped."""
    begins: tuple[str, ...] = ()
    """Other signs that begin a thought."""

    @property
    def signs(self) -> tuple[str, ...]:
        return (self.begin, self.end, *self.said, *self.begins)


#: By the name of the parser, in the order in which a model's template is asked.
THOUGHTS = {
    "seed_oss": Thoughts("<seed:think>", "</seed:think>"),
    "mistral": Thoughts("[THINK]", "[/THINK]"),
    "gemma4": Thoughts("<|channel>thought", "<channel|>"),
    "cohere": Thoughts("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    "hunyuan": Thoughts("<think>", "</think>", ("<answer>", "</answer>")),
    "granite": Thoughts("Here is my thought process:", "Here is my response:", begins=("Here's my thought process:",)),
    "think": Thoughts("<think>", "</think>"),
}
