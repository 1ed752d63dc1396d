"""How wide the biases of keys are beside the keys: what they cost a cache of codes."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import role_shape
from plimsoll.api.model import LayerSpec, ModelFacts
from plimsoll.api.precision import HeldCache
from plimsoll.api.shard import Run
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.quantized.values import floats
from plimsoll.checkpoint.sharded import ShardedCheckpoint

Floats = npt.NDArray[np.float32]


def key_bias_ranges(checkpoint: Checkpoint) -> Mapping[HeldCache, float] | None:
    """Range of a head's key biases over the spread of its keys, by the cache of codes: root mean square of all heads.

    The scale of a key's codes follows from the range of its channels, which large biases alone decide. `int4`
    multiplies by a Hadamard matrix first, and so does this. What a cache loses grows with the square of the range, and
    adds up over heads. The spread is the root mean square of the channels that `k_proj` gives for independent inputs,
    as the norm before it leaves them. The range is that at position 0: rotary embeddings turn pairs of channels and
    keep their lengths.

    Reads the biases of all keys, and their weights.

    Returns:
        None where it is not known: no layer has key biases, keys are normed, no norm stands before attention, or the
        checkpoint is cut for ranks.

    Raises:
        CheckpointError: as `Checkpoint.read`.
    """
    facts = checkpoint.facts
    biased = [(index, spec) for index, spec in enumerate(facts.layers) if spec.qkv_bias]
    known = all(spec.qk_norm is None and spec.placement != "after" for _, spec in biased)
    if not biased or not known or isinstance(checkpoint, ShardedCheckpoint):
        return None
    squares: dict[HeldCache, float] = {"int8": 0.0, "int4": 0.0}
    for index, spec in biased:
        for head in range(facts.num_kv_heads):
            bias, keys = _head(checkpoint, index, spec, head)
            squares["int8"] += (float(np.ptp(bias)) / keys) ** 2
            squares["int4"] += (float(np.ptp(_turned(bias))) / keys) ** 2
    heads = facts.num_layers * facts.num_kv_heads
    return {cache: math.sqrt(total / heads) for cache, total in squares.items()}


def _head(checkpoint: Checkpoint, index: int, spec: LayerSpec, head: int) -> tuple[Floats, float]:
    """The biases of a key head, and the spread of its keys."""
    facts = checkpoint.facts
    names = find_family(facts.architecture).names
    prefix, rows = names.layer.format(index), _rows(facts, head)
    module, norm = f"{prefix}{names.linear('k').module}", f"{prefix}{names.norms['attention_norm']}"
    weights = _read(checkpoint, f"{module}.weight", rows) * (_read(checkpoint, f"{norm}.weight") + spec.norm.offset)
    spread = math.sqrt(float(np.square(weights).sum(axis=1).mean()))
    # A head without weights has keys that are the same for all tokens; any number that is not 0 would do.
    return _read(checkpoint, f"{module}.bias", rows), spread or 1.0


def _rows(facts: ModelFacts, head: int) -> Run:
    """Rows of a key head in the stored linear that holds it."""
    linear, dim = find_family(facts.architecture).names.linear("k"), facts.head_dim
    if linear.layout == "grouped":
        group = facts.num_heads // facts.num_kv_heads
        first = (head * (group + 2) + group) * dim
    else:
        above = linear.roles[: linear.roles.index("k")]
        first = sum(role_shape(facts, role)[0] for role in above) + head * dim
    return first, first + dim


def _read(checkpoint: Checkpoint, name: str, rows: Run | None = None) -> Floats:
    raw = checkpoint.read(name, rows)
    return floats(raw.dtype, raw.data)


def _turned(x: Floats) -> Floats:
    """(x [D]) times the normed Hadamard matrix in runs of the largest power of 2 that divides D, as for `int4`."""
    run, half, turned = len(x) & -len(x), 1, x
    while half < run:
        pairs = turned.reshape(-1, 2, half)
        turned = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(-1)
        half *= 2
    return turned / np.float32(math.sqrt(run))
