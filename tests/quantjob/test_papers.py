"""What lies beside the weights of an output: a generation config that its readers can use."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob.generation_config import valid_generation_config
from plimsoll.quantjob.job import QuantizeJob
from plimsoll.quantjob.progress import Tracker
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.tokens import TokenPlan
from plimsoll.runtime.sampling_defaults import sampling_defaults
from tests.support.checkpoints import make_checkpoint
from tests.support.quantizing import job_options

ROUNDED = Recipe("rtn", 4, 32, "compressed-tensors", search_scale=False, clip=False, compensate=False)


@pytest.mark.parametrize(
    ("given", "written", "words"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 1.5}, {"do_sample": True, "temperature": 0.6}, "top_p '1.5'"),
        (
            {"temperature": 0.6, "eos_token_id": 2},
            {"do_sample": True, "temperature": 0.6, "eos_token_id": 2},
            "do_samp",
        ),
        ({"do_sample": "true", "top_k": "20"}, {"do_sample": True, "top_k": 20}, "do_sample is set to true"),
        ({"do_sample": True, "temperature": "hot"}, {"do_sample": True}, "temperature 'hot'"),
        ({"do_sample": False, "temperature": 0.0}, {"do_sample": True, "top_k": 1}, "top_k 1, which means the same"),
        ({"max_new_tokens": -3, "min_length": 2}, {"min_length": 2}, "max_new_tokens '-3' is left out"),
        ({"length_penalty": 2.0, "early_stopping": "x"}, {}, "length_penalty '2.0' is left out"),
        ({"eos_token_id": [2, "</s>"]}, {"eos_token_id": [2]}, "no token ids"),
        ({"eos_token_id": "</s>"}, {}, "no token ids"),
    ],
)
def test_unusable_values_are_left_out_and_named(given: dict[str, Any], written: dict[str, Any], words: str) -> None:
    found, notes = valid_generation_config(given)
    assert found == written
    assert words in " ".join(notes)
    GenerationConfig(**found).validate(strict=True)
    assert valid_generation_config(found) == (found, ())


@pytest.mark.parametrize(
    "given",
    [{}, {"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": [1, 2]}, {"repetition_penalty": 1.1},
     {"do_sample": True, "temperature": 0.0}, {"transformers_version": "4.30", "of_another_reader": {"x": 1}}],
)  # fmt: skip
def test_usable_values_stay_as_they_are(given: dict[str, Any]) -> None:
    assert valid_generation_config(given) == (given, ())


def test_an_output_holds_a_valid_generation_config_and_the_job_says_what_it_changed(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    given = {"temperature": 0.6, "top_p": 1.5, "eos_token_id": 2}
    (source / "generation_config.json").write_text(json.dumps(given))
    said: list[str] = []
    plan = TokenPlan("self", 0, 48, 0)
    QuantizeJob(job_options(source, tmp_path / "out", source, recipe=ROUNDED, plan=plan), Tracker(), said.append).run()
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"do_sample": True, "temperature": 0.6, "eos_token_id": 2}
    assert any("top_p '1.5' is not used" in note and "the output leaves it out" in note for note in said)
    assert sampling_defaults(open_checkpoint(tmp_path / "out").generation_config)[1] == ()
    GenerationConfig.from_pretrained(tmp_path / "out").validate(strict=True)
