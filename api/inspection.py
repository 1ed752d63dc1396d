"""What an inspect pod reports of a checkpoint, small enough for a container's termination message."""

from dataclasses import dataclass

from plimsoll.api.model import ModelFacts

#: Kubernetes keeps this much of a container's last words.
MAX_BYTES = 4096


@dataclass(frozen=True)
class Inspection:
    """Facts of one source at one revision, from its configuration and tensor headers alone."""

    digest: str
    """`sha256:…` over names, sizes and headers (oci://: the image's own digest)."""
    revision: str
    """What `source` resolves to for good: a commit on a hub, the digest elsewhere."""
    bytes: int
    """Of all files that serving needs."""
    path: str
    """Of the checkpoint inside what the source holds: `` for a folder, `model.gguf` for one file of it."""
    facts: ModelFacts
