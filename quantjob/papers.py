"""What lies beside the weights: configuration, tokenizer, chat template, generation config, the original's papers."""

import os
import shutil
from pathlib import Path

from plimsoll.api.families.registry import find_family
from plimsoll.api.quantization import Quantization
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.end_tokens import with_ends
from plimsoll.checkpoint.json_file import write_object
from plimsoll.checkpoint.quantized.formats import quantization_config
from plimsoll.checkpoint.safetensors_writer import INDEX_NAME, index_of
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.quantjob.generation_config import NAME as GENERATION_NAME
from plimsoll.quantjob.generation_config import valid_generation_config
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.shards import Shard

#: What of a Hugging Face folder goes along: everything small that is neither weights nor written here.
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".py", ".md")
_NAMES = ("LICENSE", "NOTICE", "USE_POLICY")
_WRITTEN = ("config.json", INDEX_NAME)
_MOST_BYTES = 256 * 1024 * 1024


def quantization_of(checkpoint: Checkpoint, recipe: Recipe) -> Quantization:
    """What the output's configuration says of its weights."""
    head = find_family(checkpoint.facts.architecture).names.head
    return Quantization(recipe.format, recipe.bits, recipe.group_size, recipe.bits == 8, (head,))


def write_papers(folder: Path, checkpoint: Checkpoint, recipe: Recipe, shards: list[Shard]) -> list[str]:
    """Write all of it into `folder` beside the shards. Returns every file of the checkpoint, shards included.

    Raises:
        OSError: the disk is full or not writable.
    """
    config = {
        **checkpoint.config, "quantization_config": quantization_config(quantization_of(checkpoint, recipe)),
    }  # fmt: skip
    written = ["config.json"]
    write_object(folder / "config.json", config)
    if len(shards) > 1:
        written.append(INDEX_NAME)
        total = sum(sum(shard.tensors.values()) for shard in shards)
        write_object(folder / INDEX_NAME, index_of({shard.name: shard.tensors for shard in shards}, total))
    generation, _ = valid_generation_config(checkpoint.generation_config)
    if checkpoint.path.is_dir():
        for path in sorted(checkpoint.path.iterdir()):
            kept = path.name.endswith(_SUFFIXES) or path.name.startswith(_NAMES)
            # A manifest of ours speaks of other files.
            ours = path.name in _WRITTEN or path.name.startswith(("plimsoll-", "."))
            small = path.is_file() and path.stat().st_size <= _MOST_BYTES
            if kept and small and not ours and not path.name.endswith(".index.json"):
                if path.name == GENERATION_NAME and generation != checkpoint.generation_config:
                    write_object(folder / path.name, generation)
                else:
                    shutil.copyfile(path, folder / path.name)
                written.append(path.name)
    else:
        tokenizer = load_tokenizer(checkpoint)
        write_object(folder / GENERATION_NAME, with_ends(generation, tokenizer.eos_token_ids))
        tokenizer.save(folder)
        # The folder holds nothing but what was written for this checkpoint.
        written += [path.name for path in folder.iterdir() if not path.name.endswith(".safetensors")]
    for name in dict.fromkeys(written):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    return sorted({*written, *(shard.name for shard in shards)})
