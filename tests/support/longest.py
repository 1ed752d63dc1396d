"""The order of a run: the files that take longest come first, so that no worker ends minutes after the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Below tests/: about ten seconds and more each. What waits for processes stands beside what computes.
LONGEST = (
    "server/test_leaving.py", "checkpoint/test_inspecting.py", "server/test_pod.py", "engine/transport/test_ranks.py",
    "sturdy/test_fuzz_requests.py", "checkpoint/test_fetching.py", "models/test_real_model.py",
    "sturdy/test_engine_death.py", "quantjob/test_job.py", "cli/test_serve.py", "kernels/test_built_ahead.py",
    "server/test_operations.py", "engine/test_equal_bits.py", "kernels/test_int8.py", "kernels/test_neon.py",
    "kernels/test_amx.py", "engine/test_equivalence.py", "cli/test_up.py", "operator/plan/test_planner.py",
    "cli/test_quantize_failures.py", "checkpoint/test_sources.py", "engine/worker/test_sampler.py",
    "cli/test_quantize.py", "operator/plan/test_quantized.py", "operator/plan/test_planner_mutations.py",
    "cli/test_up_jobs.py", "models/test_quantized_shards.py", "kernels/test_quantized.py", "cli/test_chat.py",
    "models/test_layers_at_once.py", "checkpoint/test_convert.py", "engine/transport/test_client.py",
    "checkpoint/test_quantized_fuzz.py", "checkpoint/test_fetching_together.py", "quantjob/test_streamed.py",
    "operator/shell/test_lost_namespaces.py", "engine/test_precisions.py", "operator/plan/test_groups.py",
    "sturdy/test_hanging_up.py", "operator/plan/test_inspecting.py", "operator/plan/test_draining.py",
    "sturdy/test_hostile_requests.py", "operator/plan/test_cards.py", "hostile/test_objects.py",
    "operator/shell/test_hostile.py", "operator/shell/test_main.py", "kernels/test_native.py",
    "kernels/test_triton_quant.py", "house/test_command.py", "quantjob/test_crew.py", "house/test_imports.py",
)  # fmt: skip


def longest_first(tests: Path, items: Sequence[Any]) -> list[Any]:
    """`items` in the order of `LONGEST`, and then those of all other files as they came."""
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    return sorted(items, key=lambda item: places.get(item.path, len(places)))
