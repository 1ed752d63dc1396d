"""Fuzz the readers of checkpoints: `python -m tests.support.fuzz_readers gguf --seconds 600`.

Each case is a seed of `tests/hostile/seeds/checkpoints` with some damage. Opened, read and tokenized, it works or is
refused in plain words, within bounded time and memory. A case that does anything else is kept in `--findings`.
"""

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plimsoll.api.errors import PlimsollError
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from tests.support.bounded import TooLongError, bounded
from tests.support.damage import damage_bytes, damage_json, damaged_gguf, damaged_header, files_below

SEEDS = Path(__file__).parents[1] / "hostile" / "seeds" / "checkpoints"
#: Processor time and memory that one case may take. Seeds are under 100 kB.
SECONDS, MEMORY = 5.0, 128 << 20
WORDS = 2_000


def _one(rng: random.Random, folder: Path, *patterns: str) -> Path | None:
    found = [path for path in files_below(folder) if any(path.match(pattern) for pattern in patterns)]
    return rng.choice(found) if found else None


def _gguf(rng: random.Random, path: Path) -> None:
    if rng.random() < 0.6:
        path.write_bytes(damaged_gguf(rng, path.read_bytes()))
    else:
        damage_bytes(rng, path, rng.choice([100, 400, 1_200, 6_000, None]))


def _safetensors(rng: random.Random, folder: Path) -> None:
    path = _one(rng, folder, "*.safetensors", "*.index.json")
    assert path is not None
    if path.suffix == ".json":
        _json(rng, path)
    elif rng.random() < 0.6:
        path.write_bytes(damaged_header(rng, path.read_bytes()))
    else:
        damage_bytes(rng, path, rng.choice([16, 200, 2_000, None]))


def _json(rng: random.Random, path: Path) -> None:
    if rng.random() < 0.15:
        damage_bytes(rng, path)
        return
    value = json.loads(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        damage_json(rng, value)
    if rng.random() < 0.2 and path.name == "config.json":
        # Keys that the seed lacks.
        value[rng.choice(["rope_scaling", "layer_types", "head_dim", "sliding_window", "quantization_config"])] = (
            rng.choice([rng.randint(-2, 70), {"rope_type": "yarn", "factor": 2.0}, {"quant_method": "gptq"}, [1], "1"])
        )
    path.write_text(json.dumps(value))


def _configs(rng: random.Random, folder: Path) -> None:
    path = _one(rng, folder, "config.json", "generation_config.json")
    assert path is not None
    _json(rng, path)


def _tokenizers(rng: random.Random, folder: Path) -> None:
    path = _one(rng, folder, "tokenizer*", "merges.txt", "vocab.json", "*.jinja", "special_tokens_map.json")
    assert path is not None
    if path.suffix == ".json":
        _json(rng, path)
    else:
        damage_bytes(rng, path)


SURFACES: dict[str, Callable[[random.Random, Path], None]] = {
    "gguf": _gguf, "safetensors": _safetensors, "configs": _configs, "tokenizers": _tokenizers,
}  # fmt: skip


def seeds(surface: str) -> list[Path]:
    """The checkpoints that a surface begins with."""
    return [path for path in sorted(SEEDS.iterdir()) if (path.suffix == ".gguf") == (surface == "gguf")]


def case(surface: str, number: int, place: Path) -> Path:
    """Writes the case of this number below `place`, the same one each time, and gives its path."""
    rng = random.Random(f"{surface} {number}")
    seed = rng.choice(seeds(surface))
    target = place / seed.name
    if seed.is_dir():
        shutil.copytree(seed, target)
    else:
        shutil.copy(seed, target)
    SURFACES[surface](rng, target)
    return target


def use(path: Path) -> None:
    """Everything that is done with a checkpoint before its weights are computed with."""
    checkpoint = open_checkpoint(path)
    for name in checkpoint.tensors:
        assert checkpoint.read(name).shape == checkpoint.tensors[name].shape
    checkpoint.digest()
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.decode(tokenizer.encode("hello 123 <|im_end|>"))
    tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])


def wrong(path: Path) -> str | None:
    """What is wrong with the answer to a case; None where it is taken or refused as it should be."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with bounded(SECONDS):
            use(path)
    except PlimsollError as error:
        if error.field is None:
            return f"the refusal names no field: {error}"
        if len(str(error)) > WORDS:
            return f"the refusal has {len(str(error))} characters: {str(error)[:200]}"
    except (Exception, TooLongError):
        return traceback.format_exc()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"takes {grown >> 20} MiB" if grown > MEMORY else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("surface", choices=sorted(SURFACES))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--first", type=int, default=0, help="The number of the first case.")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "plimsoll-findings")
    given = parser.parse_args(arguments)
    use(seeds(given.surface)[0])  # What libraries take when they are first used is no finding.
    number, kinds, end = given.first, dict[str, int](), time.monotonic() + given.seconds
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory(prefix="plimsoll-fuzz-") as place:
            path = case(given.surface, number, Path(place))
            if found := wrong(path):
                kind = _kind(found)
                kinds[kind] = kinds.get(kind, 0) + 1
                if kinds[kind] == 1:
                    _keep(path, given.findings / f"{given.surface}-{number}", found)
                    print(f"case {number}: {found}", flush=True)
        number += 1
    print(f"{given.surface}: {number - given.first} cases, findings: {kinds or 'none'}")
    return 1 if kinds else 0


def _kind(found: str) -> str:
    """Findings at one place of the code are one."""
    lines = found.strip().splitlines()
    places = [line.strip() for line in lines if line.startswith("  File")]
    return f"{places[-1]}: {lines[-1][:40]}" if places else found[:40]


def _keep(path: Path, target: Path, found: Any) -> None:
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(path, target / path.name, dirs_exist_ok=True) if path.is_dir() else shutil.copy(path, target)
    (target / "finding.txt").write_text(found)


if __name__ == "__main__":
    sys.exit(main())
