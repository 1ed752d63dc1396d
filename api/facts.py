"""From a `config.json` to `ModelFacts`: what each architecture means by its configuration, and the tensors it needs."""

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.api.architecture import ARCHITECTURES, find_architecture
from plimsoll.api.config_keys import refuse_keys, refuse_other_model_type, unknown_keys
from plimsoll.api.config_values import flag, integer, number, short
from plimsoll.api.errors import CheckpointError
from plimsoll.api.model import ModelFacts, TensorFact
from plimsoll.api.quantization import parse_quantization
from plimsoll.api.rope_config import lost_theta, rope_from_config, unknown_rope_keys

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
#: Beyond any published model. Sums, lists and searches over these counts stay small for a hostile configuration.
_MOST_LAYERS, _MOST_HEADS, _MOST_HEAD_DIM = 1 << 10, 1 << 12, 1 << 13
_MOST_HIDDEN, _MOST_INTERMEDIATE, _MOST_VOCABULARY = 1 << 20, 1 << 22, 1 << 24
#: Numbers of heads that an error lists.
_SHOWN = 12
#: Key-value heads where a configuration does not name them, by its class in transformers; others have one a head.
_KV_HEADS = {"MistralForCausalLM": 8, "Qwen2ForCausalLM": 32, "Qwen3ForCausalLM": 32}
#: Tokens of a window that is used and not named, in the classes of transformers.
_WINDOW = 4096


def facts_from_config(config: Mapping[str, Any], tensors: Mapping[str, TensorFact] | None = None) -> ModelFacts:
    """Facts of the model that `config` (a Hugging Face `config.json`, of transformers 4 or 5) describes.

    Raises:
        CheckpointError: an architecture, activation, scaling or quantisation that is not run, a field that is missing,
            or one whose value makes no sense; the message names it.
    """
    architecture = _architecture(config)
    _refuse_unrun(config, architecture)
    heads = integer(config, "num_attention_heads", most=_MOST_HEADS)
    # What the configuration class of the family takes where the key is not there at all; null says the heads' number.
    absent = heads if "num_key_value_heads" in config else _KV_HEADS.get(architecture, heads)
    kv_heads = integer(config, "num_key_value_heads", default=absent, most=_MOST_HEADS)
    hidden = integer(config, "hidden_size", most=_MOST_HIDDEN)
    if heads % kv_heads:
        raise CheckpointError(
            f"does not divide the {heads} attention heads", field="num_key_value_heads", value=kv_heads,
            fix=f"It must be one of {[n for n in range(1, heads + 1) if heads % n == 0][:_SHOWN]}",
        )  # fmt: skip
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"is not a multiple of the {heads} attention heads and there is no head_dim",
            field="hidden_size",
            value=hidden,
        )
    whole = 128 if architecture == "Qwen3ForCausalLM" and "head_dim" not in config else hidden // heads
    head_dim = integer(config, "head_dim", default=whole, most=_MOST_HEAD_DIM)
    if head_dim % 2:
        raise CheckpointError("must be even: positions rotate pairs", field="head_dim", value=head_dim)
    layers = integer(config, "num_hidden_layers", most=_MOST_LAYERS)
    max_position = integer(config, "max_position_embeddings")
    window, window_layers = _sliding(config, architecture, layers)
    qwen2, internlm2 = architecture == "Qwen2ForCausalLM", architecture == "InternLM2ForCausalLM"
    bias = flag(config, "bias", True) if internlm2 else flag(config, "attention_bias")
    return ModelFacts(
        architecture=architecture,
        vocab_size=integer(config, "vocab_size", most=_MOST_VOCABULARY),
        hidden_size=hidden,
        intermediate_size=integer(config, "intermediate_size", most=_MOST_INTERMEDIATE),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        rms_norm_eps=number(config, "rms_norm_eps", 1e-6, most=1.0),
        rope=rope_from_config(config, max_position),
        tie_embeddings=flag(config, "tie_word_embeddings"),
        sliding_window=window,
        sliding_layers=window_layers,
        qkv_bias=qwen2 or bias,
        output_bias=bias and not qwen2,
        mlp_bias=flag(config, "mlp_bias") and architecture == "LlamaForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        dtype=_dtype(config),
        eos_token_ids=_token_ids(config, "eos_token_id"),
        bos_token_id=next(iter(_token_ids(config, "bos_token_id")), None),
        tensors=tensors,
        quantization=parse_quantization(config),
        config=config,
    )


def config_notes(config: Mapping[str, Any], where: str = "") -> tuple[str, ...]:
    """Sentences on keys of `config` that are not known, or that transformers reads in an unexpected way.

    Args:
        config: one that `facts_from_config` takes.
        where: put before each key.
    """
    notes = []
    unknown = [*unknown_keys(config), *unknown_rope_keys(config)]
    if unknown:
        shown = ", ".join(key[:80] for key in unknown[:12]) + (f" and {len(unknown) - 12} more" if unknown[12:] else "")
        notes.append(f"{where}these keys are not known and are ignored: {shown}")
    lost = lost_theta(config)
    if lost is not None:
        notes.append(
            f"{where}rope_scaling replaces rope_parameters, and with it rope_theta {lost:g}: as in transformers, 10000 "
            f'is used; if the model was trained with {lost:g}, add "rope_theta": {lost:g} to rope_scaling'
        )
    return tuple(notes)


def expected_tensors(facts: ModelFacts) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor the model needs, in the order it is loaded. A tied head is not among them."""
    arch = find_architecture(facts.architecture)
    hidden, inner, dim = facts.hidden_size, facts.intermediate_size, facts.head_dim
    q_rows, kv_rows = facts.num_heads * dim, facts.num_kv_heads * dim
    qkv_rows = (q_rows, kv_rows, kv_rows) if arch.qkv_layout == "stacked" else (q_rows + 2 * kv_rows,)
    shapes: dict[str, tuple[int, ...]] = {f"{arch.embedding}.weight": (facts.vocab_size, hidden)}

    def add(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    for index in range(facts.num_layers):
        prefix = arch.layer.format(index)
        shapes[f"{prefix}{arch.attention_norm}.weight"] = (hidden,)
        for name, rows in zip(arch.qkv, qkv_rows, strict=True):
            add(prefix + name, rows, hidden, facts.qkv_bias)
        if facts.qk_norm:
            shapes[f"{prefix}{arch.q_norm}.weight"] = (dim,)
            shapes[f"{prefix}{arch.k_norm}.weight"] = (dim,)
        add(prefix + arch.output, hidden, q_rows, facts.output_bias)
        shapes[f"{prefix}{arch.mlp_norm}.weight"] = (hidden,)
        for name in arch.gate_up:
            add(prefix + name, inner, hidden, facts.mlp_bias)
        add(prefix + arch.down, hidden, inner, facts.mlp_bias)
    shapes[f"{arch.final_norm}.weight"] = (hidden,)
    if not facts.tie_embeddings:
        shapes[f"{arch.head}.weight"] = (facts.vocab_size, hidden)
    return shapes


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(
            "must list exactly one class name", field="architectures", value=short(names),
            fix=f"One of {', '.join(sorted(ARCHITECTURES))}",
        )  # fmt: skip
    find_architecture(names[0])
    return names[0]


def _refuse_unrun(config: Mapping[str, Any], architecture: str) -> None:
    activation = config.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise CheckpointError("only silu is run", field="hidden_act", value=short(activation))
    refuse_other_model_type(config, architecture)
    refuse_keys(config)


def _sliding(config: Mapping[str, Any], architecture: str, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    """(window, which layers have it); Qwen has a window only where it says so, and then from some layer on."""
    kinds = _layer_types(config, layers)
    if architecture not in ("MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        if kinds is not None and any(kinds):
            raise CheckpointError(
                f"{architecture} has no sliding windows", field="layer_types", value=short(config["layer_types"]),
                fix="Name the class that the weights were trained as",
            )  # fmt: skip
        return None, None
    qwen = architecture.startswith("Qwen")
    if (qwen and not flag(config, "use_sliding_window")) or config.get("sliding_window", _WINDOW) is None:
        return None, None
    window = integer(config, "sliding_window", default=_WINDOW)
    if kinds is not None:
        # transformers' class for `mistral` puts the window on every layer and ignores layer_types.
        if not qwen and not all(kinds) and config.get("model_type", "mistral") == "mistral":
            raise CheckpointError(
                "a model of type mistral has its window on every layer", field="layer_types",
                value=short(config["layer_types"]),
                fix="Set model_type to ministral where layers differ; else delete layer_types",
            )  # fmt: skip
        return window, kinds
    if not qwen:
        return window, None
    first = integer(config, "max_window_layers", default=28, least=0)
    return window, tuple(index >= first for index in range(layers))


def _layer_types(config: Mapping[str, Any], layers: int) -> tuple[bool, ...] | None:
    """Per layer, whether its attention is a sliding window; None where the configuration does not say."""
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


def _dtype(config: Mapping[str, Any]) -> str:
    said = config.get("dtype", config.get("torch_dtype")) or "bfloat16"
    # As Python prints torch's types; `auto` leaves it to the weights, whose own types are in the headers.
    name = said.removeprefix("torch.") if isinstance(said, str) else said
    name = "bfloat16" if name == "auto" else name
    if not isinstance(name, str) or name not in _DTYPES:
        raise CheckpointError(
            "unknown precision", field="dtype", value=short(said), fix=f"One of {', '.join(sorted(_DTYPES))}"
        )
    return _DTYPES[name]


def _token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = config.get(key)
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in ids):
        raise CheckpointError("must be a token id or a list of them", field=key, value=short(value))
    return tuple(item for item in ids if item >= 0)
