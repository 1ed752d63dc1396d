"""Hostile numbers of parts in a split GGUF: each is refused by its key, in few words."""

import shutil
import struct
from pathlib import Path

import pytest

from plimsoll.checkpoint.open import open_checkpoint
from tests.support.bounded import refusal
from tests.support.checkpoints import make_gguf, make_model
from tests.support.damage import gguf_of, gguf_parts, gguf_text

#: Values with their types before them.
VALUES: tuple[bytes, ...] = (
    *(struct.pack("<Ii", 5, number) for number in (-(2**31), -1, 7, 2**31 - 1)),
    struct.pack("<IQ", 10, 2**64 - 1), struct.pack("<If", 6, 2.5), struct.pack("<I?", 7, True),
    struct.pack("<I", 8) + gguf_text(b"x" * 1_000_000), struct.pack("<IIQI", 9, 4, 1, 2),
)  # fmt: skip


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    make_gguf(folder / "tiny.gguf", make_model("LlamaForCausalLM", num_hidden_layers=1), tensors_a_part=6)
    return folder


@pytest.mark.parametrize(("key", "part"), [("split.count", 1), ("split.count", 2), ("split.no", 1), ("split.no", 2),
                                           ("split.tensors.count", 1)])  # fmt: skip
def test_a_hostile_number_of_parts_is_refused_by_its_key(split: Path, tmp_path: Path, key: str, part: int) -> None:
    for number, value in enumerate(VALUES):
        folder = Path(shutil.copytree(split, tmp_path / str(number)))
        path = folder / f"tiny-{part:05d}-of-00002.gguf"
        entries, rows, rest = gguf_parts(path.read_bytes())
        name = gguf_text(key.encode())
        entries = [entry for entry in entries if not entry.startswith(name)]
        path.write_bytes(gguf_of([*entries, name + value], rows, rest))
        error = refusal(open_checkpoint, folder)
        assert error is not None, value[:20]
        assert len(str(error)) < 600
        assert "split." in str(error.field) or "its name does not say which" in str(error)
