"""How tokens are guessed, in our words and in vLLM's."""

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.cli.main import main
from plimsoll.cli.speculative import guessing


@pytest.mark.parametrize(
    ("tokens", "draft", "config", "expected"),
    [
        (0, None, None, (0, None)),
        (5, None, None, (5, None)),
        (5, "org/draft", None, (5, "org/draft")),
        (0, None, '{"method": "ngram", "num_speculative_tokens": 4}', (4, None)),
        (0, None, '{"model": "[ngram]", "num_speculative_tokens": 16}', (16, None)),
        (0, None, '{"model": "org/draft", "num_speculative_tokens": 4}', (4, "org/draft")),
        (
            0,
            None,
            '{"method": "draft_model", "model": "d", "num_speculative_tokens": 1, "draft_tensor_parallel_size": 1}',
            (1, "d"),
        ),
    ],
)
def test_both_spellings_are_a_number_of_tokens_and_a_draft(
    tokens: int, draft: str | None, config: str | None, expected: tuple[int, str | None]
) -> None:
    assert guessing(tokens, draft, config) == expected


@pytest.mark.parametrize(
    ("tokens", "draft", "config", "words"),
    [
        (0, "org/draft", None, "--draft-model: guesses no tokens.*Add --speculative-tokens 4"),
        (3, None, '{"method": "ngram", "num_speculative_tokens": 4}', "--speculative-config: says the same as"),
        (0, "d", '{"method": "ngram", "num_speculative_tokens": 4}', "says the same as --draft-model"),
        (0, None, "ngram", "--speculative-config: must be a JSON object"),
        (0, None, "[" * 100_000, "--speculative-config: must be a JSON object"),
        (0, None, '{"method": "eagle", "num_speculative_tokens": 4}', "method: must be ngram or draft_model"),
        (0, None, '{"method": "eagle3", "model": "d", "num_speculative_tokens": 4}', "must be ngram or draft_model"),
        (0, None, '{"num_speculative_tokens": 4}', "method: must be ngram or draft_model"),
        (0, None, '{"model": 7, "num_speculative_tokens": 4}', "method: must be ngram or draft_model"),
        (0, None, '{"method": "ngram", "model": "org/draft", "num_speculative_tokens": 4}', "goes with method draft_m"),
        (0, None, '{"method": "draft_model", "num_speculative_tokens": 4}', "must be the address of a draft model"),
        (0, None, '{"method": "draft_model", "model": "ngram"}', "must be the address of a draft model"),
        (0, None, '{"method": ["ngram"], "num_speculative_tokens": 4}', "must be ngram"),
        (0, None, '{"method": "ngram"}', "num_speculative_tokens: must be a whole number, 1 to 16"),
        (0, None, '{"method": "ngram", "num_speculative_tokens": 17}', "must be a whole number, 1 to 16"),
        (0, None, '{"method": "ngram", "num_speculative_tokens": true}', "must be a whole number, 1 to 16"),
        (0, None, '{"method": "ngram", "prompt_lookup_max": 3}', "prompt_lookup_max: is not an option"),
        (
            0,
            None,
            '{"model": "d", "num_speculative_tokens": 4, "draft_tensor_parallel_size": 2}',
            "draft_tensor_parallel_size: must be 1: one rank runs all of the draft .found 2.. Leave it out",
        ),
    ],
)
def test_what_this_engine_does_not_do_is_refused(tokens: int, draft: str | None, config: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        guessing(tokens, draft, config)


def test_serve_refuses_it_before_anything_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "hf://org/nothing@main", "--speculative-config", '{"method": "mtp"}'])
    assert ended.value.code == 1
    assert "--speculative-config method: must be ngram or draft_model (found 'mtp')" in capsys.readouterr().err
