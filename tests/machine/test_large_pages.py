"""One region holds all weights of a model, and goes back with the last of them."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plimsoll.api.precision import Precision
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.machine.large_pages import large_pages, room
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import make_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="regions of large pages are Linux's")
MIB = 1 << 20


def mappings_of(nbytes: int) -> int:
    """Mappings of this process that have about so many bytes."""
    found = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        found += nbytes <= end - start <= nbytes + 4 * MIB
    return found


def test_rooms_lie_one_after_the_other_each_on_a_line_of_its_own() -> None:
    with large_pages(8 * MIB):
        rooms = [room(nbytes) for nbytes in (100, 64, 3 * MIB)]
    for value, one in enumerate(rooms):
        one.fill_(value)

    places = [one.data_ptr() for one in rooms]
    assert places[0] % (2 * MIB) == 0
    assert places == [places[0], places[0] + 128, places[0] + 192]
    assert [one.numel() for one in rooms] == [100, 64, 3 * MIB]
    assert [bool((one == value).all()) for value, one in enumerate(rooms)] == [True] * 3


def test_what_a_region_has_no_room_for_lies_elsewhere() -> None:
    with large_pages(MIB):
        first, second, third = room(MIB - 64), room(MIB), room(64)

    assert third.data_ptr() == first.data_ptr() + MIB - 64
    assert not first.data_ptr() <= second.data_ptr() < first.data_ptr() + MIB
    assert second.numel() == MIB


def test_outside_of_a_region_and_in_one_that_cannot_be_had_memory_is_as_ever() -> None:
    with large_pages(1 << 62):
        none = room(5)

    assert none.numel() == room(5).numel() == 5


def test_a_region_goes_back_with_the_last_of_its_rooms() -> None:
    before = mappings_of(777 * MIB)
    with large_pages(777 * MIB):
        first, second = room(MIB), room(MIB)
    during = mappings_of(777 * MIB)
    del first
    after_one = mappings_of(777 * MIB)
    del second

    assert (before, during, after_one, mappings_of(777 * MIB)) == (0, 1, 1, 0)


@pytest.mark.parametrize("precision", ["bfloat16", "w4a16"])
def test_all_matrices_of_a_model_lie_in_one_region(tmp_path: Path, precision: Precision) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "LlamaForCausalLM", tokenizer=False))
    kernels = native_kernels("cpu", torch.bfloat16)
    decoder: Any = load_decoder(checkpoint, checkpoint.facts, kernels, torch.bfloat16, precision=precision)
    matrices = [decoder.embedding, decoder.head]
    for layer in decoder.layers:
        matrices += [layer.qkv, layer.output, layer.gate_up, layer.down]
    places = sorted({(matrix.address, matrix.data.nbytes) for matrix in matrices})

    assert all(0 <= after[0] - (place + nbytes) < 64 for (place, nbytes), after in itertools.pairwise(places))
