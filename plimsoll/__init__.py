"""Plimsoll: quantize and serve large language models up to the memory line and never past it."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from plimsoll.runtime.llm import LLM
    from plimsoll.runtime.engine.core.sampling_params import SamplingParams


def __getattr__(name: str) -> Any:
    # The engine pulls in torch; `import plimsoll` in the operator must not.
    if name == "LLM":
        from plimsoll.runtime.llm import LLM

        return LLM
    if name == "SamplingParams":
        from plimsoll.runtime.engine.core.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'plimsoll' has no attribute {name!r}")
