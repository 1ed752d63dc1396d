"""Which architecture of `spec.py` runs which Hugging Face class."""

from collections.abc import Mapping

from plimsoll.api.errors import CheckpointError
from plimsoll.runtime.models.spec import INTERNLM2, LLAMA, Architecture

ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "InternLM2ForCausalLM": INTERNLM2,
}


def find_architecture(name: str) -> Architecture:
    """Raises CheckpointError for a class that is not run, listing those that are."""
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError("this architecture is not run", field="architectures", value=name, fix=f"Known: {known}")
    return ARCHITECTURES[name]
