"""A Hugging Face folder: config.json, generation_config.json, and safetensors, single or sharded with an index."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plimsoll.api.cache_loss import measured_caches
from plimsoll.api.config_values import flag
from plimsoll.api.errors import CheckpointError
from plimsoll.api.facts import config_notes
from plimsoll.api.families.registry import all_families, find_family
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import TensorFact
from plimsoll.api.shard import Run, Shard
from plimsoll.api.share import shares
from plimsoll.checkpoint.checkpoint import (
    FLOAT_DTYPES,
    Checkpoint,
    RawTensor,
    facts_of,
    quantization_of,
    run_of,
)
from plimsoll.checkpoint.json_file import read_object
from plimsoll.checkpoint.own_head import has_own_head
from plimsoll.checkpoint.quantized.formats import layout_of
from plimsoll.checkpoint.quantized.layout import Cut, Window
from plimsoll.checkpoint.quantized.linear import QuantizedLinear
from plimsoll.checkpoint.quantized.manifest import check_sizes, read_manifest
from plimsoll.checkpoint.quantized.stored import logical_tensors
from plimsoll.checkpoint.safetensors_file import STORAGE, StoredTensor, read_header, read_segments

INDEX_NAME = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def _shards(folder: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files that hold tensors, and the index's map from tensor to file where there is an index."""
    index_path = folder / INDEX_NAME
    if index_path.is_file():
        weight_map = read_object(index_path).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(v, str) for v in weight_map.values())
        ):
            raise CheckpointError("needs a weight_map from tensor to file name", field=str(index_path))
        names = sorted(set(weight_map.values()))
        # A shard is a plain name beside the index: `..` or `/` would read files the user did not point at.
        for name in names:
            if name != Path(name).name or not name.endswith(".safetensors") or "\0" in name:
                raise CheckpointError("names a shard outside the folder", field=str(index_path), value=name[:200])
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{len(absent)} of {len(names)} shards are not in the folder: {', '.join(absent[:3])}",
                field=str(index_path),
                fix="Complete the download",
            )
        return [folder / name for name in names], weight_map
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        _refuse_without_weights(folder)
    if len(files) > 1:
        single = folder / "model.safetensors"
        if single not in files:
            raise CheckpointError(
                f"holds {len(files)} safetensors files and no {INDEX_NAME}",
                field=str(folder),
                fix=f"Add the {INDEX_NAME} that came with the shards",
            )
        files = [single]
    return files, None


def _end_notes(generation_config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A sentence on values of `eos_token_id` that are no ids; the others count."""
    given = generation_config.get("eos_token_id")
    listed = given if isinstance(given, list) else [given]
    wrong = [value for value in listed if value is not None and (isinstance(value, bool) or not isinstance(value, int))]
    return (f"{where}eos_token_id {str(wrong)[:80]} is not used: it must be a token id or a list",) if wrong else ()


def _refuse_without_weights(folder: Path) -> None:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            "holds only pickled weights, and loading a pickle runs the code that is in it",
            field=str(folder),
            value=pickles[0],
            fix="Convert where you trust the file: AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST)",
        )
    raise CheckpointError("holds no safetensors weights", field=str(folder), fix="Complete the download")


class HuggingFaceCheckpoint(Checkpoint):
    """See `Checkpoint`. Tensors keep the names and dtypes of the files; a quantized linear has its weight's name, and
    W4 or W8 for a dtype.

    Attributes:
        manifest: what `plimsoll quantize` wrote beside the weights, if it made them.
    """

    format: Literal["huggingface", "gguf"] = "huggingface"

    def __init__(self, folder: Path) -> None:
        """Read every header; take no memory for weights.

        Raises:
            CheckpointError: anything missing, truncated, mismatched or not supported, by file and field.
        """
        self.path = folder
        self.manifest = read_manifest(folder)
        if self.manifest is not None:
            check_sizes(folder, self.manifest)
        config_path = folder / "config.json"
        if not config_path.is_file():
            raise CheckpointError(
                "holds no config.json", field=str(folder), fix="Point at a Hugging Face model folder or a .gguf file"
            )
        self.config = read_object(config_path)
        generation_path = folder / "generation_config.json"
        self.generation_config = read_object(generation_path) if generation_path.is_file() else {}

        self._files: list[Path] = []
        self._stored: dict[str, tuple[Path, StoredTensor]] = {}
        self._find_tensors()
        untied = self._untie()
        stored = {
            name: TensorFact(name, tensor.shape, tensor.dtype, tensor.nbytes)
            for name, (_, tensor) in self._stored.items()
        }
        quantization = quantization_of(self.config, str(config_path))
        logical = logical_tensors(stored, quantization, str(folder))
        self._modules = logical.modules
        self._held: tuple[str, Window, Mapping[str, RawTensor]] | None = None
        facts = facts_of(self.config, self.generation_config, logical.tensors, str(config_path))
        measured = {} if self.manifest is None else measured_caches(self.manifest.evaluation)
        self.facts = replace(facts, measured_caches=measured)
        ends = _end_notes(self.generation_config, f"{generation_path}: ")
        self.notices = (*untied, *config_notes(self.config, f"{config_path}: "), *ends)
        names = find_family(self.facts.architecture).names
        for module in (names.embedding, names.head):
            if module in self._modules:
                raise CheckpointError(
                    "a quantized embedding or head is not run", field=f"{folder}: {module}",
                    fix="Leave it whole when quantizing",
                )  # fmt: skip
        for fact in logical.tensors.values():
            if fact.dtype not in FLOAT_DTYPES and fact.name.removesuffix(".weight") not in self._modules:
                raise CheckpointError(
                    f"is stored as {fact.dtype}", field=f"{folder}: {fact.name}", fix=f"Weights must be {FLOAT_DTYPES}"
                )

    def _find_tensors(self) -> None:
        """Fill `_files` and `_stored` by the headers."""
        self._files, weight_map = _shards(self.path)
        for file in self._files:
            for name, tensor in read_header(file).items():
                if name in self._stored:
                    raise CheckpointError(
                        f"tensor {name[:200]!r} is in two files", field=str(file), value=self._stored[name][0].name
                    )
                self._stored[name] = (file, tensor)
        if weight_map is not None:
            self._check_index(weight_map)

    def _untie(self) -> tuple[str, ...]:
        """Call the head its own in `config` where the files hold another matrix than the embedding; and say so."""
        said = self.config.get("architectures")
        family = all_families().get(said[0]) if isinstance(said, list) and said and isinstance(said[0], str) else None
        try:
            tied = flag(self.config, "tie_word_embeddings", family is not None and family.tied)
        except CheckpointError:
            return ()  # Refused where the facts are read, with the name of the file.
        if family is None or not tied:
            return ()
        names = family.names
        embedding, head = (self._stored.get(f"{module}.weight") for module in (names.embedding, names.head))
        if embedding is None or head is None or not has_own_head(embedding, head):
            return ()
        self.config = {**self.config, "tie_word_embeddings": False}
        return (
            f"{self.path}: {names.head}.weight differs from {names.embedding}.weight, although tie_word_embeddings is "
            "true; the head is used as it is stored",
        )

    def _check_index(self, weight_map: Mapping[str, str]) -> None:
        for name, file_name in weight_map.items():
            found = self._stored.get(name)
            if found is None or found[0].name != file_name:
                raise CheckpointError(
                    f"says tensor {name[:200]!r} is in {file_name}",
                    field=str(self.path / INDEX_NAME),
                    value=found[0].name if found else "no shard has it",
                    fix="Index and shards are from different exports; download both again",
                )

    def digest(self) -> str:
        digest = super().digest()
        if self.manifest is None:
            return digest
        # Two quantizations of one model have the same headers; the manifest knows their contents.
        return "sha256:" + hashlib.sha256(f"{digest} {self.manifest.digest}".encode()).hexdigest()

    def files(self) -> Sequence[Path]:
        return tuple(self._files)

    def read(
        self, name: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> RawTensor:
        module, quantization = name.removesuffix(".weight"), self.facts.quantization
        if module == name or module not in self._modules or quantization is None:
            return self._read_stored(name, rows, columns)
        width = self.tensors[name].shape[1]
        first, last = run_of(width, columns, name)
        # Floats may be wanted of columns that cut a group; its codes are read whole.
        size = quantization.group_size or 1
        around = first // size * size, -(-last // size) * size
        values = self.read_quantized(module, rows, around, within).dequantize()[:, first - around[0] : last - around[0]]
        return RawTensor("F32", values.shape, np.ascontiguousarray(values))

    def read_quantized(
        self, module: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> QuantizedLinear:
        quantization = self.facts.quantization
        if quantization is None or module not in self._modules:
            raise KeyError(module)
        name, layout = f"{module}.weight", layout_of(quantization)
        shape = self.tensors[name].shape
        wanted = run_of(shape[0], rows, name)
        window = Window((shape[0], shape[1]), run_of(shape[0], within, name), run_of(shape[1], columns, name))
        if not window.rows[0] <= wanted[0] <= wanted[1] <= window.rows[1]:
            raise ValueError(f"rows {wanted} of {name} lie outside {window.rows}")
        # Most formats lie transposed, so that any rows of a weight are in all of its file: read once, unpacked in runs.
        if self._held is None or self._held[:2] != (module, window):
            self._held = None
            cuts = layout.cuts(window, quantization)
            parts = {part: self._read_stored(f"{module}.{part}", *cuts[part]) for part in self._modules[module]}
            self._check_bias(module, window.rows)
            self._held = module, window, parts
        return layout.unpack(self._held[2], quantization, window, wanted, f"{self.path}: {module}")

    def _check_bias(self, module: str, rows: Run) -> None:
        """GPTQ's exporters add biases to models that have none; only zeros change nothing."""
        name = f"{module}.bias"
        if (
            name in self._stored
            and name not in expected_tensors(self.facts)
            and self._read_stored(name, rows).data.any()
        ):
            raise CheckpointError(
                f"{self.facts.architecture} has no bias here, and this one is not zero", field=f"{self.path}: {name}",
                fix="Ignoring it would change the answers; use the configuration the weights were saved with",
            )  # fmt: skip

    @property
    def stored_tensors(self) -> Mapping[str, StoredTensor]:
        """Tensors by the names of the files, in their order."""
        return {name: tensor for name, (_, tensor) in self._stored.items()}

    def stored_cuts(self, shard: Shard) -> Mapping[str, tuple[StoredTensor, Run, Run]]:
        """What the rank of `shard` reads, in its order: by a name of its own the tensor, rows and columns.

        Raises:
            CheckpointError: a bias beside a quantized linear that cannot be left out.
        """
        found: dict[str, tuple[StoredTensor, Run, Run]] = {}
        quantization = self.facts.quantization
        for share in shares(self.facts, shard).values():
            module = share.name.removesuffix(".weight")
            for rows in share.windows:
                cuts: Mapping[str, Cut] = {share.name: (rows, share.columns)}
                if quantization is not None and not share.vector and module in self._modules:
                    shape = self.tensors[share.name].shape
                    window = Window((shape[0], shape[1]), rows, run_of(shape[1], share.columns, share.name))
                    parts = layout_of(quantization).cuts(window, quantization)
                    cuts = {f"{module}.{part}": parts[part] for part in self._modules[module]}
                    self._check_bias(module, rows)
                for name, (height, width) in cuts.items():
                    tensor = self._stored[name][1]
                    size, *rest = tensor.shape or (1,)
                    at, across = run_of(size, height, name), run_of(prod(rest), width, name)
                    found[f"{name}[{at[0]}:{at[1]},{across[0]}:{across[1]}]"] = tensor, at, across
        return found

    def _read_stored(self, name: str, rows: Run | None, columns: Run | None = None) -> RawTensor:
        tensor = self._stored[name][1]
        height, *rest = tensor.shape or (1,)
        (start, stop), (first, last) = run_of(height, rows, name), run_of(prod(rest), columns, name)
        storage = STORAGE[tensor.dtype]
        size = int(storage[-1])
        file, offset, step = self.place(name, (start, stop), (first, last), size)
        data = read_segments(file, offset, (last - first) * size, step, stop - start).view(storage)
        shape: tuple[int, ...] = (stop - start, *((last - first,) if columns is not None else rest))
        shape = shape if tensor.shape else ()
        return RawTensor(tensor.dtype, shape, data.reshape(shape))

    def place(self, name: str, rows: Run, columns: Run, size: int) -> tuple[Path, int, int]:
        """(file, first byte, bytes from row to row) of rows of columns of a stored tensor of elements of `size`."""
        file, tensor = self._stored[name]
        step = prod(tensor.shape[1:]) * size
        return file, tensor.start + rows[0] * step + columns[0] * size, step
