"""Scales folded into what comes before: the layer computes what it did."""

from pathlib import Path

import pytest
import torch

from plimsoll.api.families.family import GATED, Grouping
from plimsoll.api.model import LayerSpec, NormSpec
from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob.groups import fold, foldable, spread
from plimsoll.quantjob.layer import LayerWeights
from plimsoll.quantjob.streamed import StreamedModel
from tests.support.checkpoints import make_checkpoint

SHAPES = {
    "grouped heads, biased": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "norms of queries and keys": ("Qwen3ForCausalLM", {}),
    "fused": ("InternLM2ForCausalLM", {}),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("grouping", GATED, ids=lambda grouping: grouping.source)
def test_a_folded_scale_leaves_the_layer_as_it_was(name: str, grouping: Grouping, tmp_path: Path) -> None:
    architecture, overrides = SHAPES[name]
    model = StreamedModel(open_checkpoint(make_checkpoint(tmp_path / "m", architecture, tokenizer=False, **overrides)))
    hidden = torch.randn(2, 20, model.facts.hidden_size, generator=torch.Generator().manual_seed(0))
    weights = model.layer(0)
    wanted = model.run(weights, hidden)
    channels = weights[grouping.source].shape[0]
    scale = torch.rand(channels, generator=torch.Generator().manual_seed(1)) * 4 + 0.1
    allowed = foldable(grouping, scale, weights, torch.bfloat16)
    for role in grouping.targets:
        weights[role] = weights[role] * spread(grouping, allowed, model.facts)
    fold(grouping, allowed, weights)
    if weights[grouping.source].ndim == 1:
        # What is written in 16 bits is what was computed with.
        written = weights[grouping.source]
        torch.testing.assert_close(written, written.bfloat16().float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(model.run(weights, hidden), wanted, rtol=1e-4, atol=1e-3)


def test_a_norm_about_one_is_folded_on_what_it_means() -> None:
    spec = LayerSpec(NormSpec(1e-6, offset=1.0), 1.0, None)
    grouping = Grouping("attention_norm", ("q", "k", "v"))
    stored = torch.tensor([0.0, -0.5, 0.25, -1.0])
    weights = LayerWeights(0, spec, {"attention_norm": stored.clone()})
    allowed = foldable(grouping, torch.tensor([2.0, 3.0, 0.7, 2.0]), weights, torch.bfloat16)
    fold(grouping, allowed, weights)
    folded = weights["attention_norm"]
    torch.testing.assert_close((1 + folded) * allowed, 1 + stored, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(folded, folded.bfloat16().float(), rtol=1e-6, atol=1e-7)
    assert allowed[3] == 1
