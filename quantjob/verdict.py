"""What the figures of an output mean for its gate."""

from plimsoll.api.gate import Limits, gate
from plimsoll.api.job_progress import Evaluation
from plimsoll.checkpoint.quantized.manifest import Gate, Manifest


def reasons_of(evaluation: Evaluation | None, limits: Limits) -> list[str]:
    """Why it fails; none where it was not measured."""
    if evaluation is None:
        return []
    after = evaluation.after
    return gate(evaluation.before, after.perplexity, after.kl_mean, limits)


def evaluation_of(manifest: Manifest) -> Evaluation | None:
    """The figures that a finished output has."""
    return Evaluation.model_validate(dict(manifest.evaluation)) if manifest.evaluation else None


def verdict_of(reasons: list[str], limits: Limits) -> Gate:
    """In one word."""
    return "failed" if reasons else "passed" if limits.any else "none"
