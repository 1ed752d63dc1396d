"""What a job is going to do and about how long each part takes: said before it starts, and given to the progress."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plimsoll.api.job_budget import compared_models
from plimsoll.quantjob.crew import Crew
from plimsoll.quantjob.forecast import compared_steps, layer_steps, measure
from plimsoll.quantjob.groups import groupings_of
from plimsoll.quantjob.progress import Tracker
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.steps import ComparedSteps
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.quantjob.tokens import TokenPlan

#: Seconds of sampling after which its pace is believed.
_MEASURED = 3.0


class Outlook:
    """The forecast of one job.

    Attributes:
        layer_steps, compared: seconds of the steps of a layer, and of the evaluation.
    """

    def __init__(
        self, model: StreamedModel, recipe: Recipe, plan: TokenPlan, folder: Path, tracker: Tracker,
        say: Callable[[str], None], crew: Crew | None,
    ) -> None:  # fmt: skip
        """Measures the first layer of `model`. Raises CheckpointError where it cannot be read."""
        facts = model.facts
        self._tracker, self._say, self._plan = tracker, say, plan
        self._layers = facts.num_layers
        searched = recipe.calibrates and bool(groupings_of(facts))
        rates = measure(model, recipe, plan.length, folder, crew)
        self.layer_steps: Sequence[float] = layer_steps(
            facts, recipe, rates, plan.samples if searched else 0, plan.length
        )
        nearest = recipe.method == "awq"
        models = compared_models(facts, recipe.method)
        self.compared: ComparedSteps = compared_steps(facts, rates, plan.held_out, plan.length, models, nearest=nearest)
        self._walk = self._layers * sum(self.layer_steps)
        self._evaluation = models * self._layers * self.compared.layer + plan.held_out * self.compared.window
        if not plan.held_out:
            self._evaluation = 0.0
        self._sampling: float | None = None
        self._first: tuple[float, int] | None = None
        # Until the engine's own pace is known, drawing counts as much as all the rest: that only places the bar.
        guess = self._walk + self._evaluation if plan.sampled else 0.0
        tracker.expect({"Sampling": guess, "Quantizing": self._walk, "Evaluating": self._evaluation})

    def announce(self, done: int = 0) -> None:
        """Say what is done and about how long it takes, before it starts.

        Args:
            done: layers that an earlier run wrote.
        """
        walk = self._walk * (1 - done / self._layers)
        parts = [f"quantizing {self._layers - done} layers about {duration(walk)}"]
        if self._plan.held_out:
            parts.append(f"measuring {self._plan.held_out} windows about {duration(self._evaluation)}")
        words = ", ".join(parts)
        if not self._plan.sampled:
            self._say(f"{words}: about {duration(walk + self._evaluation)} in all")
            return
        tokens = sum(samples for samples, _ in self._plan.sampled.values()) * self._plan.length
        self._say(f"first the model writes {tokens:,} tokens of text, at a pace that is measured; then {words}")

    def drawn(self, done: int, of: int) -> None:
        """So many tokens of `self` text are there."""
        clock = time.monotonic()
        if self._first is None:
            self._first = clock, done
            self._tracker.move("Sampling", done / of, message=f"{done:,} of {of:,} tokens drawn")
            return
        began, before = self._first
        # The first steps read prompts, and one of them says little.
        if self._sampling is None and clock - began >= _MEASURED and done > before and done < of:
            pace = (clock - began) / (done - before)
            self._sampling = pace * of
            left = pace * (of - done)
            self._tracker.expect({"Sampling": self._sampling})
            whole = duration(left + self._walk + self._evaluation)
            self._say(f"writing these tokens takes about {duration(left)}: about {whole} in all")
        self._tracker.move("Sampling", done / of, message=f"{done:,} of {of:,} tokens drawn")


def duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
