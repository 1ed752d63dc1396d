"""Rebuild a Hugging Face configuration from a GGUF file's metadata.

Keys are llama.cpp's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). What the file leaves out takes
llama.cpp's default, not a configuration class's.
"""

from math import pi
from typing import Any

import numpy as np

from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import Family, Gguf
from plimsoll.api.families.registry import all_families
from plimsoll.checkpoint.gguf_file import ArrayField, GgufFile
from plimsoll.checkpoint.safetensors_file import read_range

MAX_LAYERS = 10_000


def _shortest(value: float) -> float:
    """The shortest decimal with the same float32 value: 1e-05 where the file's float32 reads 9.99999974e-06."""
    return float(str(np.float32(value)))


class _Metadata:
    """Typed access to one architecture's keys, with errors that name file and key."""

    def __init__(self, file: GgufFile, prefix: str) -> None:
        self.file, self.prefix = file, prefix

    def fail(self, key: str, message: str, value: object = None) -> CheckpointError:
        return CheckpointError(message, field=f"{self.file.path}: {self.prefix}.{key}", value=value)

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least one; a per-layer array must hold one value for all layers."""
        value = self.file.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, ArrayField):
            distinct = sorted(set(self.file.array(f"{self.prefix}.{key}") or [None]), key=str)
            if len(distinct) != 1:
                raise self.fail(key, "differs from layer to layer, which no served architecture does", distinct[:4])
            value = distinct[0]
        if value is None:
            raise self.fail(key, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 31:
            raise self.fail(key, "must be a whole number of at least 1", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.file.metadata.get(f"{self.prefix}.{key}", default)
        if value is None:
            raise self.fail(key, "is missing")
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.fail(key, "must be a number above 0", value)
        return _shortest(float(value))

    def has(self, key: str) -> bool:
        return f"{self.prefix}.{key}" in self.file.metadata

    def truthy(self, key: str) -> bool:
        return bool(self.file.metadata.get(f"{self.prefix}.{key}"))

    def has_tensor(self, name: str) -> bool:
        return name in self.file.tensors

    def vector(self, name: str, length: int) -> list[float]:
        return _floats(self.file, name, length).tolist()  # type: ignore[no-any-return]


def family_of(file: GgufFile) -> tuple[Family, Gguf]:
    """The family that serves `general.architecture`, and how its files are written.

    Raises:
        CheckpointError: none does.
    """
    name = file.metadata.get("general.architecture")
    written = [(family, family.gguf) for family in all_families().values() if family.gguf is not None]
    if isinstance(name, str):
        data = _Metadata(file, name)
        for family, gguf in written:
            if name in gguf.architectures and gguf.applies(data):
                return family, gguf
    known = dict.fromkeys(one for _, gguf in written for one in gguf.architectures)
    raise CheckpointError(
        "is an architecture that cannot be served",
        field=f"{file.path}: general.architecture",
        value=str(name)[:80],
        fix=f"Served from GGUF: {', '.join(known)} (Mistral files call themselves llama)",
    )


def build_config(file: GgufFile) -> dict[str, Any]:
    """`config.json` in the form of Hugging Face.

    Raises:
        CheckpointError: a key is missing, out of range, or asks for something no served architecture does.
    """
    family, gguf = family_of(file)
    architecture = str(file.metadata["general.architecture"])
    data = _Metadata(file, architecture)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError("has no token_embd.weight matrix", field=str(file.path), fix="The file is incomplete")
    if file.metadata.get(f"{architecture}.expert_count", 0):
        raise data.fail(
            "expert_count", "mixtures of experts cannot be served", file.metadata[f"{architecture}.expert_count"]
        )
    hidden, heads = data.count("embedding_length"), data.count("attention.head_count")
    layers = data.count("block_count")
    if layers > MAX_LAYERS:
        raise data.fail("block_count", f"is above {MAX_LAYERS}", layers)
    # A head that is rotated in part has no size in the metadata.
    rotated = hidden // heads if gguf.partial else data.count("rope.dimension_count", hidden // heads)
    head_dim = data.count("attention.key_length", rotated)
    for key in ("attention.value_length",) if gguf.partial else ("rope.dimension_count", "attention.value_length"):
        if data.count(key, head_dim) != head_dim:
            raise data.fail(key, f"differs from the head size {head_dim}, which no served architecture does")
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": data.count("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": data.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": data.count("context_length"),
        "rms_norm_eps": data.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": data.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file, data, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": "bfloat16",
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": build_generation_config(file).get("eos_token_id"),
    }
    config |= gguf.config(data)
    return {key: value for key, value in config.items() if value is not None}


def build_generation_config(file: GgufFile) -> dict[str, Any]:
    """`generation_config.json`: begin and end tokens; every token that ends a turn counts as an end."""
    ends = []
    for name in ("eos", "eot", "eom"):
        token = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int) and token not in ends:
            ends.append(token)
    config: dict[str, Any] = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    for name, key in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if isinstance(token := file.metadata.get(f"tokenizer.ggml.{name}_token_id"), int):
            config[key] = token
    return config


def _rope_scaling(file: GgufFile, data: _Metadata, head_dim: int) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file, data, head_dim)
    kind = file.metadata.get(f"{data.prefix}.rope.scaling.type")
    if kind is None and data.has("rope.scale_linear"):
        factor = data.number("rope.scale_linear")
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    # The family reads LongRoPE's factors.
    if kind in (None, "none", "longrope"):
        return None
    factor = data.number("rope.scaling.factor")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
        original = data.count("rope.scaling.original_context_length", data.count("context_length"))
        scaling["original_max_position_embeddings"] = original
        for key in ("beta_fast", "beta_slow"):
            if data.has(f"rope.scaling.yarn_{key}"):
                scaling[key] = data.number(f"rope.scaling.yarn_{key}")
        return scaling
    raise data.fail("rope.scaling.type", "is a rotary scaling that cannot be served", str(kind)[:40])


def _llama3_scaling(file: GgufFile, data: _Metadata, head_dim: int) -> dict[str, Any] | None:
    """Llama 3's parameters from the divisors llama.cpp stores in their place.

    `rope_freqs.weight` holds head_dim / 2 divisors of the frequencies: 1 for the fast ones, the factor for the slow
    ones, a blend between. Candidates are recomputed and compared, so a table of another kind is refused.
    """
    divisors = _floats(file, "rope_freqs.weight", head_dim // 2)
    if np.allclose(divisors, 1.0):
        return None
    theta = data.number("rope.freq_base", 10000.0)
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    factor = _shortest(float(divisors.max()))
    original_lengths = dict.fromkeys((8192, data.count("context_length"), 4096, 2048, 16384, 32768))
    for original in original_lengths:
        if np.isfinite(divisors).all() and np.allclose(
            llama3_divisors(frequencies, factor, original), divisors, rtol=1e-4
        ):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    raise CheckpointError(
        "does not follow Llama 3's rule for any known trained length",
        field=f"{file.path}: rope_freqs.weight",
        value=[round(float(value), 3) for value in divisors[:: max(1, len(divisors) // 6)]],
    )


def _floats(file: GgufFile, name: str, length: int) -> np.ndarray[Any, Any]:
    """float64 [length]. Raises CheckpointError for another shape or type, or a tensor that is not there."""
    tensor = file.tensors.get(name)
    if tensor is None or tensor.shape != (length,) or tensor.type_name != "F32":
        found = None if tensor is None else tensor.shape
        raise CheckpointError(f"must be {length} values of F32", field=f"{file.path}: {name}", value=found)
    return read_range(tensor.path, tensor.start, tensor.nbytes).view("<f4").astype(np.float64)


def llama3_divisors(frequencies: np.ndarray[Any, Any], factor: float, original: int) -> np.ndarray[Any, Any]:
    """What Llama 3.1 divides each rotary frequency by, with its low and high frequency factors of 1 and 4."""
    low, high = 1.0, 4.0
    wavelengths = 2 * pi / frequencies
    blend = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1 - blend) / factor + blend))
