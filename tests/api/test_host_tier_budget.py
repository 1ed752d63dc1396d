"""The second tier of the cache in the budget: whole blocks, on a CPU's line and beside a card's."""

from dataclasses import replace

import pytest

from plimsoll.api.budget import Load, budget
from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.sizes import block_bytes
from tests.api.test_budget import CARD, FACTS, GIB


def test_a_host_tier_is_whole_blocks_taken_off_the_line_of_a_cpu_and_of_no_card() -> None:
    block = block_bytes(FACTS, 64, "bfloat16")
    wish = Load(precision="bfloat16", ratio=0.5, host_bytes=10 * block + 5)
    for kind, on_line in (("cpu", 10 * block), ("cuda", 0)):
        device = DeviceFacts(kind, 24 * GIB)  # type: ignore[arg-type]
        plain, found = budget(FACTS, device, replace(wish, host_bytes=0)), budget(FACTS, device, wish)
        assert (found.host_blocks, found.host_bytes, found.pod_host_bytes) == (10, 10 * block, 10 * block)
        assert found.fullest.host == on_line
        assert plain.kv_cache - found.kv_cache in ((5 * block, 5 * block + block) if on_line else (0,))
        terms = found.per_device()
        assert terms["total"] == sum(size for name, size in terms.items() if name != "total")
        assert terms.get("hostCache", 0) == on_line
    spread = budget(FACTS, CARD, replace(wish, tensor=2))
    assert spread.host_blocks == 20
    assert spread.pod_host_bytes == 20 * block


def test_a_host_tier_that_does_not_fit_is_in_the_sum_and_without_it_is_a_way_out() -> None:
    device = DeviceFacts("cpu", 18 * GIB)
    with pytest.raises(DoesNotFitError, match=r"\+ 8\.0 GiB host tier = ") as caught:
        budget(FACTS, device, Load(precision="bfloat16", host_bytes=8 * GIB, max_length=2048))
    assert "no kvCache.hostMemory" in caught.value.ways
    with pytest.raises(
        SpecError, match=r"spec\.kvCache\.hostMemory: holds no block of the cache, which takes 8\.0 MiB"
    ):
        budget(FACTS, device, Load(precision="bfloat16", host_bytes=1 << 20))
