"""What a quantization job takes, by hand for one model and by its properties for all."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.budget import CONTEXT_BYTES, MIB
from plimsoll.api.device import HOST_BYTES_PER_DEVICE
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.job_budget import (
    CODED_ROWS,
    GRAM_COLUMNS,
    HEAP_BYTES,
    PAPERS_BYTES,
    PROCESS_BYTES,
    WORKER_HEAP_BYTES,
    JobLoad,
    check_groups,
    job_needs,
    layer_bytes,
)
from plimsoll.api.job_ways import ON_GPUS, OPTIONS, check_device, check_disk, check_memory, disk_ways, memory_ways
from tests.support.miniature import CONFIG

FACTS = facts_from_config(CONFIG)
#: Of eight billion parameters.
LARGE = facts_from_config(
    CONFIG | {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
)
LOAD = JobLoad("awq", 4, 64, samples=128, length=2048)


def test_the_walk_holds_codes_what_runs_of_one_layer_and_a_micro_batch() -> None:
    base = PROCESS_BYTES + HEAP_BYTES
    codes = 576 * 576 * 2 + 2 * 192 * 576 + 3 * 1536 * 576
    gate_up, products, batch = 4 * 2 * 1536 * 576, 4 * 1536 * 1536, 4 * 2048 * 2 * (1536 + 576)
    assert job_needs(FACTS, LOAD).walk == base + codes + gate_up + products + batch
    rounded = base + codes + codes // 2 + 4 * 1536 * 576
    assert job_needs(FACTS, replace(LOAD, method="rtn", batch=8)).walk == rounded


def test_an_evaluation_takes_memory_where_something_is_measured() -> None:
    assert job_needs(FACTS, LOAD).evaluation == 0
    assert job_needs(FACTS, replace(LOAD, held_out=1)).evaluation > 2 * layer_bytes(FACTS)
    assert layer_bytes(FACTS) == 4 * (576 * 576 * 2 + 2 * 192 * 576 + 3 * 1536 * 576)


def test_the_output_is_codes_scales_zeros_and_what_stays_whole() -> None:
    found = job_needs(FACTS, LOAD).output - PAPERS_BYTES
    linear = 30 * (576 * 576 * 2 + 2 * 192 * 576 + 3 * 1536 * 576)
    whole = 2 * (49152 * 576 + 61 * 576)
    codes, scales, zeros = linear // 2, linear // 64 * 2, linear // 64 // 2
    # A row of nine groups takes five bytes of zero points, not four and a half.
    assert codes + scales + zeros + whole <= found <= 1.001 * (codes + scales + zeros + whole)


def test_a_device_holds_its_context_and_its_share_of_the_largest_grouping() -> None:
    alone, four = (job_needs(LARGE, replace(LOAD, devices=count)) for count in (1, 4))
    assert job_needs(LARGE, LOAD).device == 0

    def share(rows: int, columns: int) -> int:
        """Moments, rows and their codes, and what one run of rows needs on the way."""
        run = 4 * GRAM_COLUMNS * (2 * GRAM_COLUMNS + 5 * CODED_ROWS)
        return 4 * columns * GRAM_COLUMNS + rows * columns * 5 + run

    fixed = CONTEXT_BYTES["cuda"] + WORKER_HEAP_BYTES
    # Gate and up of all rows; of four devices, a quarter of down and a run of rows more.
    assert alone.device == fixed + share(2 * 14336, 4096)
    assert four.device == fixed + share(4096 // 4 + CODED_ROWS, 14336)
    # What goes to a device passes through a process of the host, which has CUDA's own side of it.
    assert alone.walk - job_needs(LARGE, LOAD).walk == HOST_BYTES_PER_DEVICE + alone.device - CONTEXT_BYTES["cuda"]


@pytest.mark.parametrize("devices", [1, 3, 7])
def test_a_device_that_is_too_small_is_refused_with_what_would_fit(devices: int) -> None:
    load = replace(LOAD, devices=devices)
    needs = job_needs(LARGE, load)
    check_device(LARGE, needs, needs.device, load, ON_GPUS)
    below = job_needs(LARGE, replace(load, devices=devices + 1)).device
    least = f"{-(-needs.device // (1 << 20))}Mi"
    for names, device, field, way in (
        (ON_GPUS, None, "spec.accelerator.memory", f"parallelism.workers {devices + 1}, accelerator.memory {least}"),
        (ON_GPUS, "the largest", "spec.accelerator.resource", f"parallelism.workers {devices + 1}, devices of {least}"),
        (OPTIONS, None, "--device-memory", f"--workers {devices + 1}, --device-memory {least}"),
        (OPTIONS, "cuda:0", "--device", f"--workers {devices + 1}, devices of {least}"),
    ):
        with pytest.raises(DoesNotFitError) as refused:
            check_device(LARGE, needs, below, load, names, device)
        assert str(refused.value).startswith(f"{field}: needs ")
        assert way in str(refused.value).replace(", or ", ", ")
    with pytest.raises(DoesNotFitError, match=r"fits with: devices of \d+Mi"):
        check_device(LARGE, needs, 512 << 20, load, ON_GPUS, "it")


def test_ways_of_a_job_on_gpus_are_fewer_devices_and_the_hosts_memory() -> None:
    load = replace(LOAD, devices=4)
    needs, two = job_needs(FACTS, load), job_needs(FACTS, replace(load, devices=2))
    with pytest.raises(DoesNotFitError) as refused:
        check_memory(FACTS, needs, two.memory, load, ON_GPUS)
    words = str(refused.value)
    assert words.startswith("spec.pod.memory: ")
    assert "parallelism.workers 2" in words
    assert f"pod.memory {needs.memory >> 20}Mi" in words


def test_hidden_states_lie_on_disk_before_and_after_a_layer() -> None:
    assert job_needs(FACTS, LOAD).scratch == 2 * 4 * 128 * 2048 * 576


def test_an_evaluation_keeps_the_hidden_states_of_each_model_that_it_compares() -> None:
    # Of the model as it was, the output with a cache of floats and with two of codes, and rounding to nearest: what is
    # worked on, what is kept, and the next of one.
    few = replace(LOAD, samples=1, held_out=16)
    assert 11 * 4 * 16 * 2048 * 576 <= job_needs(FACTS, few).scratch <= 11.1 * 4 * 16 * 2048 * 576
    assert job_needs(FACTS, replace(LOAD, held_out=16)).scratch == job_needs(FACTS, LOAD).scratch, "one after the other"


def test_only_text_that_is_sampled_takes_an_engine() -> None:
    assert job_needs(FACTS, LOAD).sampling == 0
    sampled = job_needs(FACTS, replace(LOAD, sampled=True)).sampling
    assert sampled > PROCESS_BYTES + 2 * 134_000_000


def test_groups_that_do_not_divide_are_refused_with_those_that_do() -> None:
    with pytest.raises(SpecError, match=r"does not divide 576 columns .*Write 64 or 32"):
        job_needs(FACTS, replace(LOAD, group_size=128))
    check_groups(FACTS, 32)
    check_groups(FACTS, 0)
    with pytest.raises(SpecError, match="Use method int8"):
        check_groups(facts_from_config({**CONFIG, "hidden_size": 900, "head_dim": 100}), 64)


def test_what_does_not_fit_is_refused_with_the_sum_and_a_way_out() -> None:
    load = replace(LOAD, sampled=True, batch=4)
    needs = job_needs(FACTS, load)
    with pytest.raises(DoesNotFitError) as caught:
        check_memory(FACTS, needs, 512 * MIB, load)
    for words in ("512.0 MiB", "sampling `self` text", "calibration.dataset or", f"memory {needs.memory // MIB}Mi"):
        assert words in str(caught.value)
    check_memory(FACTS, needs, needs.memory, load)
    with pytest.raises(DoesNotFitError, match=r"for the output \+ .* for hidden states"):
        check_disk(FACTS, needs, needs.disk - 1, load)
    check_disk(FACTS, needs, needs.disk, load)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 64), st.integers(64, 8192), st.integers(1, 64), st.booleans(), st.integers(0, 64),
       st.floats(0.5, 1))  # fmt: skip
def test_every_way_out_of_a_job_is_one(
    samples: int, length: int, batch: int, sampled: bool, held_out: int, share: float
) -> None:
    load = JobLoad("awq", 4, 64, samples, length, batch, sampled, held_out)
    needs = job_needs(FACTS, load)
    fields = {
        "calibration.batchSize": "batch", "calibration.sequenceLength": "length", "calibration.samples": "samples",
        "evaluation.samples": "held_out",
    }  # fmt: skip

    def applied(way: str) -> JobLoad:
        if "in place of self" in way:
            return replace(load, sampled=False)
        pairs = (part.split(" ") for part in way.split(" and "))
        return replace(load, **{fields[name]: int(value) for name, value in pairs})

    line, disk = int(needs.memory * share), int(needs.disk * share)
    for way in memory_ways(FACTS, load, line):
        assert job_needs(FACTS, applied(way)).memory <= line, way
    for way in disk_ways(FACTS, load, disk):
        assert job_needs(FACTS, applied(way)).disk <= disk, way


@given(
    st.integers(1, 4096), st.integers(16, 8192), st.integers(1, 64), st.booleans(), st.sampled_from(["awq", "rtn"]),
)  # fmt: skip
def test_more_never_takes_less(samples: int, length: int, batch: int, sampled: bool, method: str) -> None:
    load = JobLoad(method, 4, 64, samples, length, batch, sampled)
    least = job_needs(FACTS, load)
    assert least.memory >= max(least.walk, least.sampling, least.evaluation)
    for more in (
        replace(load, samples=samples + 1), replace(load, length=length + 1), replace(load, batch=batch + 1),
        replace(load, sampled=True), replace(load, method="awq"), replace(load, held_out=4096),
    ):  # fmt: skip
        found = job_needs(FACTS, more)
        assert found.memory >= least.memory
        assert found.disk >= least.disk
