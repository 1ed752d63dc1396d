"""What a GGUF file calls tensors, and what the family of its model calls them."""

import re

from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import Family, Gguf
from plimsoll.api.families.registry import all_families

_WHOLE = {"token_embd.weight": "embedding", "output_norm.weight": "final_norm", "output.weight": "head"}
#: Rotary tables: `rope_freqs` becomes the configuration's rope_scaling, the others are computed.
_TABLES = re.compile(
    r"rope_(freqs|factors_long|factors_short)\.weight|(blk\.\d+\.)?attn_rot_embd\.weight|blk\.\d+\.rope_freqs\.weight"
)
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.([a-z_0-9]+)\.(weight|bias)")


def huggingface_name(name: str, family: Family, written: Gguf, where: str) -> str | None:
    """The Hugging Face name of a GGUF tensor, or None for one that holds no weights.

    Raises:
        CheckpointError: a tensor that the family does not have; ignoring it would change the answers.
    """
    if name in _WHOLE:
        return f"{getattr(family.names, _WHOLE[name])}.weight"
    if _TABLES.fullmatch(name):
        return None
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in written.layer:
        served = ", ".join(sorted(one.removesuffix("ForCausalLM") for one in all_families()))
        raise CheckpointError(
            f"tensor {name[:120]!r} belongs to no architecture that can be served", field=where,
            fix=f"Served: dense {served}",
        )  # fmt: skip
    module = family.names.module(written.layer[match[2]])
    return f"{family.names.layer.format(match[1])}{module}.{match[3]}"
