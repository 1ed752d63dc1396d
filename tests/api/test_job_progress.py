"""A job's progress survives the way through a termination message, and nothing else does."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.errors import CheckpointError
from plimsoll.api.job_progress import MAX_BYTES, Evaluation, Figures, JobProgress, Output

FIGURES = Figures(perplexity=13.4, kl_mean=0.19, kl_p99=1.5, top1_agreement=0.83)
DONE = JobProgress(
    phase="Complete", layer=30, of=30, percent=100.0, eta_seconds=0.0, seconds=812.5, peak_memory=1 << 30,
    evaluation=Evaluation(tokens=16384, before=11.0, after=FIGURES, round_to_nearest=FIGURES, increase=0.218),
    output=Output(digest="sha256:" + "a" * 64, bytes=1 << 27),
)  # fmt: skip

amounts = st.integers(0, 1 << 62)
numbers = st.floats(0, 1e18)
figures = st.builds(Figures, perplexity=numbers, kl_mean=numbers, kl_p99=numbers, top1_agreement=st.floats(0, 1))
evaluations = st.builds(
    Evaluation, tokens=amounts, before=numbers, after=figures, round_to_nearest=st.none() | figures,
    increase=st.floats(-1, 1e18),
)  # fmt: skip
progresses = st.builds(
    JobProgress,
    phase=st.sampled_from(["Preparing", "Sampling", "Quantizing", "Evaluating", "Complete", "Failed"]),
    layer=amounts, of=amounts, percent=st.floats(0, 100), eta_seconds=st.none() | numbers, seconds=numbers,
    peak_memory=amounts, evaluation=st.none() | evaluations,
    output=st.none() | st.builds(Output, digest=st.just("sha256:" + "0" * 64), bytes=amounts),
    reason=st.none() | st.sampled_from(["GateFailed", "DiskFull"]), message=st.none() | st.text(max_size=200),
)  # fmt: skip


@given(progresses)
def test_what_is_written_is_read(progress: JobProgress) -> None:
    assert JobProgress.decode(progress.encode()) == progress
    assert JobProgress.decode(json.loads(progress.encode())) == progress


@given(progresses, st.text(min_size=2000, max_size=6000))
def test_it_fits_a_termination_message_whatever_there_is_to_say(progress: JobProgress, message: str) -> None:
    written = progress.model_copy(update={"message": message}).encode()
    assert len(written) <= MAX_BYTES
    found = JobProgress.decode(written)
    assert found.model_copy(update={"message": None}) == progress.model_copy(update={"message": None})
    assert found.message is not None
    assert message.startswith(found.message.removesuffix("…"))


def test_fields_are_named_as_the_status_page_names_them() -> None:
    found = json.loads(DONE.encode())
    assert {"phase", "layer", "of", "percent", "etaSeconds", "seconds", "peakMemory", "evaluation", "output"} == set(
        found
    )
    assert set(found["evaluation"]["after"]) == {"perplexity", "klMean", "klP99", "top1Agreement"}


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "Cooking"}, {"percent": 101}, {"percent": -1}, {"layer": "3"}, {"layer": -1}, {"layer": 1.5},
        {"seconds": float("nan")}, {"seconds": float("inf")}, {"peakMemory": True}, {"evaluation": []},
        {"output": {"digest": "x", "bytes": 1}}, {"output": {"digest": "sha256:" + "a" * 64}},
        {"evaluation": {"before": 1.0}},
        {"reason": "no words here"}, {"reason": "$(id)"}, {"message": 5}, {"message": ["x"]},
    ],
)  # fmt: skip
def test_a_forgery_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="progress of a job"):
        JobProgress.decode({**json.loads(DONE.encode()), **change})


@pytest.mark.parametrize("text", ["", "killed", "[]", "null", "1", "{", '{"phase":', "[" * 3000, b"\xff\xfe", b"{}"])
def test_other_last_words_are_refused(text: str | bytes) -> None:
    with pytest.raises(CheckpointError):
        JobProgress.decode(text)


def test_more_than_a_termination_message_is_refused() -> None:
    with pytest.raises(CheckpointError, match="at most 4096 bytes"):
        JobProgress.decode(DONE.encode() + b" " * MAX_BYTES)


def test_what_a_newer_image_says_beside_is_passed_over() -> None:
    assert JobProgress.decode({**json.loads(DONE.encode()), "weather": "fine"}) == DONE
