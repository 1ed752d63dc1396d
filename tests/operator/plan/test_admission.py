"""What quantized weights are admitted with: the bytes they take as they lie, and what `auto` passed over."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.api.budget import Load, budget
from plimsoll.api.device import DeviceFacts
from plimsoll.api.facts import facts_from_config
from plimsoll.api.inspection import Inspection
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.model import ModelFacts, TensorFact
from plimsoll.operator.plan.admission import CPU_TABLE
from tests.support.miniature import CONFIG, GIB, Cluster, spec

MIB = 1 << 20
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
#: Of the layers: 9 and 3 heads of 64, 576 wide, 1536 in the feed-forward.
LINEAR = 30 * ((9 + 2 * 3) * 64 * 576 + 576 * 576 + 3 * 576 * 1536)
EMBEDDING, VECTORS = 49152 * 576 * 2, (30 * 2 + 1) * 576 * 4
#: The embedding is the head too, which is held in 8 bits beside codes: groups of 32 with a scale in float32.
HEAD = 49152 * 576 + 49152 * 576 // 32 * 4


def stored(quantization: dict[str, Any] | None) -> ModelFacts:
    """The demo model in 4 bits, or in bfloat16."""
    config = CONFIG | ({"quantization_config": quantization} if quantization else {})
    tensors = {}
    for name, shape in expected_tensors(facts_from_config(config)).items():
        codes = quantization and ".layers." in name and len(shape) == 2
        elements = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = TensorFact(name, shape, "W4" if codes else "BF16", elements // 2 if codes else 2 * elements)
    return facts_from_config(config, tensors)


def cluster(facts: ModelFacts, **changes: Any) -> Cluster:
    # As it comes from an inspect pod.
    found = Inspection.decode(Inspection("sha256:" + "ab" * 32, "main", 80_000_000, "", facts).encode())
    made = Cluster(spec=spec(**changes), found=found)
    made.settle()
    return made


@pytest.mark.parametrize("precision", ["auto", "w4a16"])
def test_a_quantized_checkpoint_is_admitted_with_its_codes_scales_and_zero_points(precision: str) -> None:
    made = cluster(stored(AWQ), precision=precision)
    assert made.status["phase"] == "Ready"
    found = made.status["budget"]
    assert found["perDevice"]["weights"] == HEAD + VECTORS + LINEAR // 2 + LINEAR // 64 * 3
    assert found["rejected"] == []
    assert made.condition("Accepted")["reason"] == "Fits"


def test_it_can_be_made_floats_again() -> None:
    made = cluster(stored(AWQ), precision="bfloat16")
    assert made.status["budget"]["perDevice"]["weights"] == EMBEDDING + VECTORS + LINEAR * 2


def test_floats_are_admitted_in_4_and_8_bits() -> None:
    four = cluster(stored(None), precision="w4a16").status["budget"]["perDevice"]["weights"]
    eight = cluster(stored(None), precision="w8a16").status["budget"]["perDevice"]["weights"]
    rows = 30 * ((9 + 2 * 3) * 64 + 576 + 2 * 1536 + 576)
    assert eight == HEAD + VECTORS + LINEAR + 4 * rows
    # 576 columns take groups of 64, 1536 of 128.
    down = 30 * 576 * 1536
    assert four == HEAD + VECTORS + LINEAR // 2 + 3 * ((LINEAR - down) // 64 + down // 128)


def test_blocks_that_are_rounded_again_are_said_in_the_condition() -> None:
    facts = stored(None)
    blocks = {
        name: fact if len(fact.shape) == 1 else replace(fact, dtype="IQ4_XS") for name, fact in facts.tensors.items()
    }
    by_name = cluster(replace(facts, tensors=blocks), precision="w4a16").condition("Accepted")
    assert (by_name["reason"], "IQ4_XS blocks a second time" in by_name["message"]) == ("Fits", True)
    assert "second time" not in cluster(facts, precision="w4a16").condition("Accepted")["message"]
    assert cluster(replace(facts, tensors=blocks)).status["budget"]["precision"] == "bfloat16"


def test_codes_of_other_bits_are_refused_with_the_way_out() -> None:
    made = cluster(stored(AWQ), precision="w8a16")
    accepted = made.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "awq of 4 bits" in accepted["message"]
    assert "Use auto or w4a16" in accepted["message"]
    assert not made.sets


def test_rows_of_8_bits_beside_floats_are_refused_with_the_way_out() -> None:
    on_cpu = {"accelerator": {"resource": "cpu", "memory": "4Gi"}, "serving": {"activationPrecision": "int8"}}
    made = cluster(stored(None), precision="bfloat16", **on_cpu)
    accepted = made.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "Hold weights as w8a16 or w4a16" in accepted["message"]
    assert not made.sets
    assert cluster(stored(AWQ), precision="auto", **on_cpu).condition("Accepted")["reason"] == "Fits"


def test_status_lists_what_auto_passed_over_and_why() -> None:
    facts = stored(None)
    # Room for 8 bits and a request, none for bfloat16.
    whole, eight = (
        budget(facts, DeviceFacts("cpu", 8 * GIB, CPU_TABLE), Load(precision=precision, max_length=256, max_running=4))
        for precision in ("bfloat16", "w8a16")
    )
    line = sum(found.context + found.workspace + found.weights for found in (whole, eight)) // 2
    made = cluster(
        facts,
        accelerator={"resource": "cpu", "memory": f"{line // MIB}Mi"},
        context={"maxLength": 256}, serving={"maxRunningRequests": 4},
    )  # fmt: skip
    assert made.status["phase"] == "Ready", made.condition("Accepted")
    (passed,) = made.status["budget"]["rejected"]
    assert passed["option"] == "precision bfloat16"
    assert "weights" in passed["reason"]


def test_a_cache_that_auto_holds_in_int8_is_said_in_status_and_condition_and_given_to_the_pods() -> None:
    def made(memory: int) -> Cluster:
        line = {"resource": "cpu", "memory": memory}
        return cluster(stored(None), accelerator=line, precision="bfloat16", context={"maxLength": 8192})

    roomy = made(4 << 30)
    terms = roomy.status["budget"]["perDevice"]
    assert "cachePrecision" not in roomy.status["budget"]
    # Keys and values of 8,192 tokens: 180 MiB in bfloat16, 96 MiB in int8. The cache has 0.8 of what is left.
    fixed = sum(terms[name] for name in ("context", "weights", "workspace"))
    short = made(fixed + (150 << 20))
    assert short.status["budget"]["cachePrecision"] == "int8"
    assert short.status["budget"]["kvTokens"] >= 8192
    assert [one["option"] for one in short.status["budget"]["rejected"]] == ["precision bfloat16"]
    assert "auto takes int8 for the cache" in short.condition("Accepted")["message"]
    assert "kvCache.precision" not in roomy.condition("Accepted")["message"]
    for one, held in ((roomy, "auto"), (short, "int8")):
        (kept,) = (child for (kind, _), child in one.children.items() if kind == "ReplicaSet")
        (server,) = kept["spec"]["template"]["spec"]["containers"]
        given = next(env["value"] for env in server["env"] if env["name"] == "PLIMSOLL_DEPLOYMENT")
        assert parse_manifest(given).spec.kv_cache.precision == held
