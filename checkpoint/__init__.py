"""What lies on disk: Hugging Face folders and GGUF files, opened, checked and read one tensor at a time. No torch."""

from plimsoll.checkpoint.checkpoint import Checkpoint, RawTensor
from plimsoll.checkpoint.open import open_checkpoint

__all__ = ["Checkpoint", "RawTensor", "open_checkpoint"]
