"""Manifests whose model does not split over as many ranks, or not evenly: each is refused, or said, in plain words.

Every case is a manifest: a shape, a precision, a number of ranks, a device. The sizes that a refusal names are tried.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from plimsoll.api.budget import Budget, budget
from plimsoll.api.device import TORCH_TABLE, DeviceFacts, native_table
from plimsoll.api.errors import DoesNotFitError, PlimsollError, SpecError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.load import load_of, refuse_not_run_yet
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.model import ModelFacts
from plimsoll.api.rank_budget import uneven

GIB = 1 << 30
DEVICES = {
    "cpu": DeviceFacts("cpu", 1024 * GIB, native_table(32)),
    "nvidia.com/gpu": DeviceFacts("cuda", 1024 * GIB, TORCH_TABLE),
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def config(heads: int, kv: int, dim: int = 128, inner: int = 14336, vocab: int = 128256, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "hidden_size": heads * dim, "intermediate_size": inner,
        "num_hidden_layers": 4, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dim,
        "vocab_size": vocab, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, **more,
    }  # fmt: skip


SHAPES = {
    "9 heads on 3": config(9, 3, 64, 1536, 49152),
    "14 heads on 2": config(14, 2, 64, 4864, 151936),
    "28 heads on 4": config(28, 4, 128, 18944, 152064),
    "32 heads on 8": config(32, 8),
    "8 heads on 1": config(8, 1, 256, 16384, 256000),
    "32 heads of 96": config(32, 32, 96, 8192, 32064),
    "14 heads on 2, stored in groups": config(14, 2, 64, 4864, 151936, quantization_config=AWQ),
    "inner 512": config(32, 8, 128, 512),
    "inner 5": config(32, 8, 128, 5),
    "3 words": config(32, 8, 128, 14336, 3),
    "norms over all heads": config(32, 8),
}


@cache
def facts_of(shape: str) -> ModelFacts:
    found = facts_from_config(SHAPES[shape])
    if shape == "norms over all heads":
        # No family that is read has them today; the budget knows them all the same.
        found = replace(found, layers=tuple(replace(layer, qk_norm="whole") for layer in found.layers))
    return found


def sized(shape: str, precision: str, tensor: int | str, resource: str) -> Budget:
    """What the manifest's budget is; raises as `plimsoll plan` does."""
    spec = parse_manifest({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"},
        "spec": {
            "model": {"source": "hf://a/b"}, "accelerator": {"resource": resource}, "precision": precision,
            "parallelism": {"tensor": tensor},
        },
    }).spec  # fmt: skip
    facts = facts_of(shape)
    return budget(facts, DEVICES[resource], load_of(spec, facts))


CODES = "at a time as the groups of its codes need"
WIDTH = "a feed-forward width of"

#: Shape, precision, ranks that are refused, why, and the sizes that work.
REFUSED: tuple[tuple[str, str, tuple[int, ...], str, str], ...] = (
    ("9 heads on 3", "bfloat16", (10, 16), "9 attention heads cannot be split over {}", "1 to 9"),
    ("9 heads on 3", "w8a16", (64,), "9 attention heads cannot be split over {}", "1 to 9"),
    ("14 heads on 2", "bfloat16", (15, 16), "14 attention heads cannot be split over {}", "1 to 14"),
    # Seven queries of a key-value head cannot be halved where two heads share a group of codes.
    (
        "14 heads on 2", "w4a16", (2, 4, 7),
        "14 attention heads on 2 key-value heads cannot be split over {}, 2 " + CODES, "1",
    ),
    (
        "14 heads on 2, stored in groups", "auto", (2, 8),
        "14 attention heads {}cannot be split over {}, 2 " + CODES, "1",
    ),
    ("28 heads on 4", "w4a16", (29, 32), "28 attention heads cannot be split over {}", "1 to 28"),
    ("32 heads on 8", "float32", (33, 64), "32 attention heads cannot be split over {}", "1 to 32"),
    ("8 heads on 1", "w8a16", (9, 16), "8 attention heads cannot be split over {}", "1 to 8"),
    (
        "32 heads of 96", "w4a16", (9, 16, 32),
        "32 attention heads {}cannot be split over {}, 4 " + CODES, "1 to 8",
    ),
    ("inner 512", "w4a16", (5, 8), WIDTH + " 512 cannot be split over {}, 128 columns at a time", "1 to 4"),
    ("inner 5", "bfloat16", (6, 8), WIDTH + " 5 cannot be split over {}", "1 to 5"),
    ("3 words", "bfloat16", (4, 8), "a vocabulary of 3 cannot be split over {}", "1 to 3"),
    (
        "norms over all heads", "bfloat16", (2, 8),
        "the model's norms of queries and keys go over all heads at once, which no rank has", "1",
    ),
)  # fmt: skip

#: Shape, precision, ranks, and what is said of a group that is uneven.
UNEVEN = (
    ("9 heads on 3", "bfloat16", 2, "rank 0 holds 2 of 3 key-value heads: it decides the budget"),
    ("9 heads on 3", "w4a16", 4, "ranks 0 and 1 hold 3 of 9 attention heads each, and the others fewer: rank 0"),
    ("9 heads on 3", "w8a16", 8, "rank 0 holds 2 of 9 attention heads: it decides the budget"),
    ("14 heads on 2", "bfloat16", 4, "ranks 0 and 2 hold 4 of 14 attention heads each, and the others fewer"),
    ("28 heads on 4", "w4a16", 3, "rank 0 holds 2 of 4 key-value heads: it decides the budget"),
    ("28 heads on 4", "bfloat16", 8, "ranks 0, 2, 4 and 6 hold 4 of 28 attention heads each, and the others fewer"),
    ("32 heads on 8", "bfloat16", 3, "ranks 0 and 1 hold 3 of 8 key-value heads each, and the others fewer"),
    ("8 heads on 1", "w8a16", 3, "ranks 0 and 1 hold 3 of 8 attention heads each, and the others fewer"),
    ("32 heads of 96", "w4a16", 6, "ranks 0 and 3 hold 8 of 32 key-value heads each, and the others fewer"),
    ("inner 5", "float32", 2, "rank 0 holds 3 of 5 columns of the feed-forward: it decides the budget"),
)  # fmt: skip


def refused() -> Iterator[tuple[str, str, int, str, str, str]]:
    for shape, precision, sizes, why, works in REFUSED:
        for tensor in sizes:
            for resource in DEVICES:
                yield shape, precision, tensor, resource, why, works


def test_sixty_manifests_are_held_against_their_refusals() -> None:
    assert len(list(refused())) + len(DEVICES) * len(UNEVEN) >= 60


@pytest.mark.parametrize(("shape", "precision", "tensor", "resource", "why", "works"), list(refused()))
def test_what_does_not_split_names_the_field_the_value_and_the_sizes_that_work(
    shape: str, precision: str, tensor: int, resource: str, why: str, works: str
) -> None:
    with pytest.raises(SpecError) as caught:
        sized(shape, precision, tensor, resource)
    error = caught.value
    assert (error.field, error.value, error.fix) == ("spec.parallelism.tensor", tensor, f"Sizes that work: {works}")
    pattern = re.escape(why).replace(r"\{\}cannot", "(on [0-9]+ key-value heads )?cannot").replace(r"\{\}", str(tensor))
    assert re.match(pattern, error.message), error.message
    first, _, last = works.partition(" to ")
    for size in {int(first), int(last or first)}:
        assert sized(shape, precision, size, resource).tensor == size


@pytest.mark.parametrize("resource", DEVICES)
@pytest.mark.parametrize(("shape", "precision", "tensor", "said"), UNEVEN)
def test_what_splits_unevenly_is_sized_and_said(
    shape: str, precision: str, tensor: int, said: str, resource: str
) -> None:
    found = sized(shape, precision, tensor, resource)
    assert len(found.ranks) == tensor
    assert any(note.startswith(said) for note in uneven(found.ranks, facts_of(shape))), uneven(
        found.ranks, facts_of(shape)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["bfloat16", "w8a16", "w4a16"])
def test_the_sizes_that_a_refusal_names_are_those_that_work(shape: str, precision: str) -> None:
    try:
        sized(shape, precision, 64, "cpu")
        listed = set(range(1, 65))
    except SpecError as error:
        if error.field == "spec.precision":
            # Held on no number of devices: the precision is refused at every size.
            return
        first, _, last = str(error.fix).removeprefix("Sizes that work: ").partition(" to ")
        listed = set(range(int(first), int(last) + 1)) if last else {int(one) for one in first.split(", ")}
    works = set()
    for size in range(1, 65):
        try:
            works.add(sized(shape, precision, size, "nvidia.com/gpu").tensor)
        except SpecError:
            continue
    assert works == listed


@pytest.mark.parametrize("tensor", [0, -1, 65, 2.5, "two", "2", True])
def test_a_size_that_is_none_is_refused_by_the_manifest(tensor: Any) -> None:
    with pytest.raises(
        PlimsollError, match=r"spec.parallelism.tensor: must be auto or a whole number from 1 to 64 \(found"
    ):
        sized("9 heads on 3", "bfloat16", tensor, "cpu")


def test_more_nodes_than_one_are_refused_on_gpus() -> None:
    spec = parse_manifest({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"},
        "spec": {
            "model": {"source": "hf://a/b"}, "accelerator": {"resource": "nvidia.com/gpu"}, "parallelism": {"nodes": 2},
        },
    }).spec  # fmt: skip
    with pytest.raises(PlimsollError, match=r"spec.parallelism.nodes: .*not run yet.*Use 1"):
        refuse_not_run_yet(spec)


@pytest.mark.parametrize("resource", DEVICES)
@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ("norms over all heads", "On 2 devices: the model's norms of queries and keys go over all heads at once"),
        ("3 words", "On 4 devices: a vocabulary of 3 cannot be split over 4. Sizes that work: 1 to 3"),
        ("inner 5", "On 6 devices: a feed-forward width of 5 cannot be split over 6"),
    ],
)  # fmt: skip
def test_auto_that_finds_no_size_says_where_the_model_stops_to_split(shape: str, why: str, resource: str) -> None:
    facts = facts_of(shape)
    device = replace(DEVICES[resource], total=900 << 20 if resource != "cpu" else 300 << 20)
    spec = parse_manifest({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"},
        "spec": {"model": {"source": "hf://a/b"}, "accelerator": {"resource": resource}},
    }).spec  # fmt: skip
    with pytest.raises(DoesNotFitError) as caught:
        budget(facts, device, load_of(spec, facts))
    assert why in str(caught.value)
