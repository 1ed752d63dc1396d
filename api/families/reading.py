"""What families share in reading a `config.json`: sizes, norms, windows, tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plimsoll.api.config_values import flag, integer, number, short
from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import Config
from plimsoll.api.model import Activation, LayerSpec, ModelFacts, NormSpec, RopeFacts
from plimsoll.api.quantization import parse_quantization
from plimsoll.api.rope_config import rope_from_config

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
#: Beyond any published model. Sums, lists and searches over these counts stay small for a hostile configuration.
_MOST_LAYERS, _MOST_HEADS, _MOST_HEAD_DIM = 1 << 10, 1 << 12, 1 << 13
_MOST_HIDDEN, _MOST_INTERMEDIATE, _MOST_VOCABULARY = 1 << 20, 1 << 22, 1 << 24
#: Numbers of heads that an error lists.
_SHOWN = 12
#: Tokens of a window that is used and not named, in the classes of transformers.
WINDOW = 4096
#: What activations are called, by the name here.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu2": "relu2",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position: int


def read_shape(config: Config, *, kv_heads: int | None = None, head_dim: int | None = None) -> Shape:
    """Sizes that every family has.

    Args:
        kv_heads: what the family's class in transformers takes where the key is not there at all; None takes one a
            head. A null always does.
        head_dim: the same of `head_dim`; None takes the hidden size over the heads.

    Raises:
        CheckpointError: a size is missing, senseless or does not divide another; the key is named.
    """
    heads = integer(config, "num_attention_heads", most=_MOST_HEADS)
    absent = heads if "num_key_value_heads" in config else kv_heads or heads
    groups = integer(config, "num_key_value_heads", default=absent, most=_MOST_HEADS)
    hidden = integer(config, "hidden_size", most=_MOST_HIDDEN)
    if heads % groups:
        raise CheckpointError(
            f"does not divide the {heads} attention heads", field="num_key_value_heads", value=groups,
            fix=f"It must be one of {[n for n in range(1, heads + 1) if heads % n == 0][:_SHOWN]}",
        )  # fmt: skip
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"is not a multiple of the {heads} attention heads and there is no head_dim",
            field="hidden_size",
            value=hidden,
        )
    share = hidden // heads if head_dim is None or "head_dim" in config else head_dim
    dim = integer(config, "head_dim", default=share, most=_MOST_HEAD_DIM)
    if dim % 2:
        raise CheckpointError("must be even: positions rotate pairs", field="head_dim", value=dim)
    layers = integer(config, "num_hidden_layers", most=_MOST_LAYERS)
    architecture = config["architectures"][0]
    return Shape(architecture, hidden, layers, heads, groups, dim, integer(config, "max_position_embeddings"))


def rms_norm(config: Config, offset: float = 0.0, default: float = 1e-6) -> NormSpec:
    """The norm of `rms_norm_eps`. Raises CheckpointError."""
    return NormSpec(number(config, "rms_norm_eps", default, most=1.0), offset=offset)


def read_activation(
    config: Config, key: str = "hidden_act", default: str = "silu", runs: Sequence[Activation] = ("silu",)
) -> Activation:
    """The activation that `key` names. Raises CheckpointError for one that is not in `runs`."""
    said = config.get(key) or default
    found = _ACTIVATIONS.get(said) if isinstance(said, str) else None
    if found is None or found not in runs:
        raise CheckpointError(f"only {' and '.join(runs)} is run", field=key, value=short(said))
    return found


def plain_layer(config: Config, shape: Shape) -> LayerSpec:
    """Llama's layer without biases: RMS norms before attention and a gated SiLU, whole heads rotated.

    Raises CheckpointError.
    """
    # Families that have no such biases refuse a senseless value all the same.
    for key in ("attention_bias", "mlp_bias"):
        flag(config, key)
    return LayerSpec(
        norm=rms_norm(config),
        scale=shape.head_dim**-0.5,
        rope=rope_from_config(config, shape.max_position),
        activation=read_activation(config),
    )


def layer_types(config: Config, layers: int) -> tuple[bool, ...] | None:
    """Per layer, whether its attention is a sliding window; None where the configuration does not say.

    Raises CheckpointError.
    """
    types = config.get("layer_types")
    if types is None:
        return None
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, Sequence) or len(types) != layers or any(kind not in known for kind in types):
        raise CheckpointError(
            f"must name full_attention or sliding_attention for each of {layers} layers",
            field="layer_types", value=short(types),
        )  # fmt: skip
    return tuple(kind == "sliding_attention" for kind in types)


def refuse_windows(config: Config, shape: Shape) -> None:
    """Raises CheckpointError where `layer_types` asks a family for windows that it does not have."""
    if any(layer_types(config, shape.layers) or ()):
        raise CheckpointError(
            f"{shape.architecture} has no sliding windows", field="layer_types", value=short(config["layer_types"]),
            fix="Name the class that the weights were trained as",
        )  # fmt: skip


def model_facts(config: Config, shape: Shape, layers: Sequence[LayerSpec], **outer: Any) -> ModelFacts:
    """Facts of `layers`, and of what every family says in the same keys. `outer`: more fields of `ModelFacts`.

    Raises CheckpointError.
    """
    found: dict[str, Any] = {
        "architecture": shape.architecture,
        "vocab_size": integer(config, "vocab_size", most=_MOST_VOCABULARY),
        "hidden_size": shape.hidden,
        "intermediate_size": integer(config, "intermediate_size", most=_MOST_INTERMEDIATE),
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position": shape.max_position,
        "rope": layers[-1].rope or RopeFacts(),
        "tie_embeddings": flag(config, "tie_word_embeddings"),
        "layers": tuple(layers),
        "final_norm": layers[0].norm,
        "dtype": _dtype(config),
        "eos_token_ids": _token_ids(config, "eos_token_id"),
        "bos_token_id": next(iter(_token_ids(config, "bos_token_id")), None),
        "quantization": parse_quantization(config),
        "config": config,
    }
    return ModelFacts(**(found | outer))


def _dtype(config: Config) -> str:
    said = config.get("dtype", config.get("torch_dtype")) or "bfloat16"
    # As Python prints torch's types; `auto` leaves it to the weights, whose own types are in the headers.
    name = said.removeprefix("torch.") if isinstance(said, str) else said
    name = "bfloat16" if name == "auto" else name
    if not isinstance(name, str) or name not in _DTYPES:
        raise CheckpointError(
            "unknown precision", field="dtype", value=short(said), fix=f"One of {', '.join(sorted(_DTYPES))}"
        )
    return _DTYPES[name]


def _token_ids(config: Config, key: str) -> tuple[int, ...]:
    value = config.get(key)
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in ids):
        raise CheckpointError("must be a token id or a list of them", field=key, value=short(value))
    return tuple(item for item in ids if item >= 0)
