"""From a `config.json` to `ModelFacts`: what each architecture means by its configuration, and the tensors it needs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.api.architecture import ARCHITECTURES, find_architecture
from plimsoll.api.errors import CheckpointError
from plimsoll.api.model import ModelFacts, RopeFacts, TensorFact
from plimsoll.api.quantization import parse_quantization

#: What each kind of scaling must say, under its Hugging Face names.
ROPE_NEEDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
#: Beyond any published model; a hostile configuration must not make sums overflow or lists explode.
_LARGEST = 1 << 31
_MOST_LAYERS = 4096


def facts_from_config(config: Mapping[str, Any], tensors: Mapping[str, TensorFact] | None = None) -> ModelFacts:
    """Facts of the model that `config` (a Hugging Face `config.json`, of transformers 4 or 5) describes.

    Raises:
        CheckpointError: an architecture, activation, scaling or quantisation that is not run, a field that is missing,
            or one whose value makes no sense; the message names it.
    """
    architecture = _architecture(config)
    _refuse_unrun(config)
    heads = _integer(config, "num_attention_heads")
    kv_heads = _integer(config, "num_key_value_heads", default=heads)
    hidden = _integer(config, "hidden_size")
    if heads % kv_heads:
        raise CheckpointError(
            f"does not divide the {heads} attention heads", field="num_key_value_heads", value=kv_heads,
            fix=f"It must be one of {[n for n in range(1, heads + 1) if heads % n == 0][:12]}",
        )  # fmt: skip
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"is not a multiple of the {heads} attention heads and there is no head_dim",
            field="hidden_size",
            value=hidden,
        )
    head_dim = _integer(config, "head_dim", default=hidden // heads)
    if head_dim % 2:
        raise CheckpointError("must be even: positions rotate pairs", field="head_dim", value=head_dim)
    layers = _integer(config, "num_hidden_layers", most=_MOST_LAYERS)
    max_position = _integer(config, "max_position_embeddings")
    window, window_layers = _sliding(config, architecture, layers)
    qwen2, internlm2 = architecture == "Qwen2ForCausalLM", architecture == "InternLM2ForCausalLM"
    bias = bool(config.get("bias")) if internlm2 else bool(config.get("attention_bias"))
    return ModelFacts(
        architecture=architecture,
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_integer(config, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope=_rope(config, max_position),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        sliding_window=window,
        sliding_layers=window_layers,
        qkv_bias=qwen2 or bias,
        output_bias=bias and not qwen2,
        mlp_bias=bool(config.get("mlp_bias")) and architecture == "LlamaForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        dtype=_dtype(config),
        eos_token_ids=_token_ids(config, "eos_token_id"),
        bos_token_id=next(iter(_token_ids(config, "bos_token_id")), None),
        tensors=tensors,
        quantization=parse_quantization(config),
        config=config,
    )


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
            "must list exactly one class name", field="architectures", value=_short(names),
            fix=f"One of {', '.join(sorted(ARCHITECTURES))}",
        )  # fmt: skip
    find_architecture(names[0])
    return names[0]


def _refuse_unrun(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError("only silu is run", field="hidden_act", value=_short(activation))


def _sliding(config: Mapping[str, Any], architecture: str, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    """(window, which layers have it); Qwen has a window only where it says so, and then from some layer on."""
    if architecture not in ("MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        return None, None
    qwen = architecture.startswith("Qwen")
    if config.get("sliding_window") is None or (qwen and not config.get("use_sliding_window", False)):
        return None, None
    window = _integer(config, "sliding_window")
    types = config.get("layer_types")
    if types is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, Sequence) or len(types) != layers or any(kind not in known for kind in types):
            raise CheckpointError(
                f"must name full_attention or sliding_attention for each of {layers} layers",
                field="layer_types", value=_short(types),
            )  # fmt: skip
        return window, tuple(kind == "sliding_attention" for kind in types)
    if not qwen:
        return window, None
    first = _integer(config, "max_window_layers", default=28, least=0)
    return window, tuple(index >= first for index in range(layers))


def _rope(config: Mapping[str, Any], max_position: int) -> RopeFacts:
    """Either generation of names: `rope_theta` beside `rope_scaling`, or both inside `rope_parameters`."""
    name = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    given = config.get(name)
    if given is not None and not isinstance(given, Mapping):
        raise CheckpointError("must be an object", field=name, value=_short(given))
    scaling = dict(given or {})
    theta = _number(scaling if "rope_theta" in scaling else config, "rope_theta", 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind is None:
        kind = "default"
    if not isinstance(kind, str) or kind not in ROPE_NEEDS:
        raise CheckpointError(
            "this scaling of positions is not run", field=f"{name}.rope_type", value=_short(kind),
            fix=f"One of {', '.join(ROPE_NEEDS)}",
        )  # fmt: skip
    params: dict[str, float] = {}
    for key, value in scaling.items():
        if key in ("rope_type", "type", "rope_theta") or value is None:
            continue
        if isinstance(value, int | float) and math.isfinite(value):
            params[key] = float(value)
    for key in ROPE_NEEDS[kind]:
        if key not in params:
            # YaRN's factor may be left to the ratio of the lengths, as transformers does.
            if kind == "yarn" and "original_max_position_embeddings" in params:
                params[key] = max_position / params["original_max_position_embeddings"]
                continue
            raise CheckpointError(
                f"{kind} scaling needs a number here", field=f"{name}.{key}", value=_short(scaling.get(key))
            )
    for key in ("factor", "original_max_position_embeddings", "high_freq_factor", "low_freq_factor"):
        if key in params and not params[key] > 0:
            raise CheckpointError("must be above 0", field=f"{name}.{key}", value=params[key])
    if params.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError(
            "only whole heads are rotated", field=f"{name}.partial_rotary_factor", value=params["partial_rotary_factor"]
        )
    if kind == "llama3" and not params["high_freq_factor"] > params["low_freq_factor"]:
        raise CheckpointError(
            "must be above low_freq_factor", field=f"{name}.high_freq_factor", value=params["high_freq_factor"]
        )
    return RopeFacts(theta=theta, kind=kind, params=params if kind != "default" else {})  # type: ignore[arg-type]


def _dtype(config: Mapping[str, Any]) -> str:
    name = config.get("dtype", config.get("torch_dtype")) or "bfloat16"
    if not isinstance(name, str) or name not in _DTYPES:
        raise CheckpointError(
            "unknown precision", field="dtype", value=_short(name), fix=f"One of {', '.join(sorted(_DTYPES))}"
        )
    return _DTYPES[name]


def _token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = config.get(key)
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in ids):
        raise CheckpointError("must be a token id or a list of them", field=key, value=_short(value))
    return tuple(item for item in ids if item >= 0)


def _integer(
    config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1, most: int = _LARGEST
) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError("is missing", field=key, fix="Use the config.json that came with the weights")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limit = "" if most == _LARGEST else f", at most {most}"
        raise CheckpointError(f"must be a whole number, {least} or more{limit}", field=key, value=_short(value))
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not value > 0:
        raise CheckpointError("must be a number above 0", field=key, value=_short(value))
    return float(value)


def _short(value: object) -> object:
    text = repr(value)
    return value if len(text) <= 120 else text[:117] + "..."
