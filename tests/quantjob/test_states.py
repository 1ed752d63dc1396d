"""Hidden states between layers, in memory and on disk alone."""

from pathlib import Path

import pytest
import torch

from plimsoll.api.errors import CheckpointError
from plimsoll.quantjob.states import HiddenStates


@pytest.mark.parametrize("in_memory", [True, False])
def test_hidden_states_are_those_that_were_kept_before_a_layer_and_those_written_within_it(
    in_memory: bool, tmp_path: Path
) -> None:
    states = HiddenStates(tmp_path, (5, 3, 4), in_memory=in_memory)
    first, second = torch.rand(2, 5, 3, 4)
    states.start()
    for start, stop in states.batches(2):
        states.write(start, first[start:stop])
    states.keep(0)
    states.begin(0)
    for start, stop in states.batches(2):
        assert torch.equal(states.inputs(start, stop), first[start:stop])
        states.write(start, second[start:stop])
        assert torch.equal(states.outputs(start, stop), second[start:stop])
    states.keep(1)
    # Another process goes on, with more or less memory.
    later = HiddenStates(tmp_path, (5, 3, 4), in_memory=not in_memory)
    later.begin(1)
    assert torch.equal(torch.cat([later.inputs(start, stop) for start, stop in later.batches(3)]), second)
    later.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_file_that_was_cut_short_is_not_gone_on_from(in_memory: bool, tmp_path: Path) -> None:
    states = HiddenStates(tmp_path, (2, 3, 4), in_memory=in_memory)
    (tmp_path / "hidden-0.f32").write_bytes(bytes(4 * 23))

    def read() -> None:
        states.begin(0)
        states.inputs(0, 2)

    with pytest.raises(CheckpointError, match=r"hidden-0\.f32: holds fewer values than were written"):
        read()
