"""How many tokens a step guesses, in our words and in vLLM's."""

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.cli.main import main
from plimsoll.cli.speculative import guessed_tokens


@pytest.mark.parametrize(
    ("tokens", "config", "expected"),
    [
        (0, None, 0),
        (5, None, 5),
        (0, '{"method": "ngram", "num_speculative_tokens": 4}', 4),
        (0, '{"model": "[ngram]", "num_speculative_tokens": 16}', 16),
    ],
)
def test_both_spellings_are_a_number_of_tokens(tokens: int, config: str | None, expected: int) -> None:
    assert guessed_tokens(tokens, config) == expected


@pytest.mark.parametrize(
    ("tokens", "config", "words"),
    [
        (3, '{"method": "ngram", "num_speculative_tokens": 4}', "--speculative-config: says the same as"),
        (0, "ngram", "--speculative-config: must be a JSON object"),
        (0, "[" * 100_000, "--speculative-config: must be a JSON object"),
        (0, '{"method": "eagle", "num_speculative_tokens": 4}', "--speculative-config method: must be ngram"),
        (0, '{"model": "org/draft", "num_speculative_tokens": 4}', "--speculative-config method: must be ngram"),
        (0, '{"method": "ngram", "model": "org/draft", "num_speculative_tokens": 4}', "must be ngram"),
        (0, '{"method": ["ngram"], "num_speculative_tokens": 4}', "must be ngram"),
        (0, '{"method": "ngram"}', "--speculative-config num_speculative_tokens: must be a whole number, 1 to 16"),
        (0, '{"method": "ngram", "num_speculative_tokens": 17}', "must be a whole number, 1 to 16"),
        (0, '{"method": "ngram", "num_speculative_tokens": true}', "must be a whole number, 1 to 16"),
        (0, '{"method": "ngram", "prompt_lookup_max": 3}', "--speculative-config prompt_lookup_max: is not an option"),
    ],
)
def test_what_this_engine_does_not_do_is_refused(tokens: int, config: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        guessed_tokens(tokens, config)


def test_serve_refuses_it_before_anything_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "hf://org/nothing@main", "--speculative-config", '{"method": "mtp"}'])
    assert ended.value.code == 1
    assert "--speculative-config method: must be ngram (found 'mtp')" in capsys.readouterr().err
