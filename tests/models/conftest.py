"""The real model as transformers has it: the reference of every claim about right answers."""

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def smollm2_transformers(smollm2_gguf: Path) -> Any:
    """SmolLM2-135M-Instruct dequantised by transformers from the same GGUF, float32, in eval mode."""
    from transformers import AutoModelForCausalLM

    folder, name = smollm2_gguf.parent, smollm2_gguf.name
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
