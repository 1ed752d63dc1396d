"""Ranks that load report as one: the bytes of all of them, and of each."""

from collections.abc import Sequence

from plimsoll.runtime.engine.worker.rank_progress import RankProgress
from plimsoll.runtime.messages import LoadProgress, RankLoad


def progress(done: int, total: int, seconds: float, phase: str = "weights") -> LoadProgress:
    return LoadProgress(phase=phase, done_bytes=done, total_bytes=total, seconds=seconds)


def test_bytes_of_all_ranks_are_one_report() -> None:
    said: list[LoadProgress] = []
    others: list[LoadProgress | None] = [None, None]

    def seen() -> Sequence[LoadProgress | None]:
        return others

    together = RankProgress(said.append, seen)
    together(progress(10, 100, 1.0))
    # A rank that has said nothing yet is as large as rank 0.
    assert (said[-1].done_bytes, said[-1].total_bytes, said[-1].seconds) == (10, 300, 1.0)
    others[0] = progress(20, 80, 1.5)
    together(progress(100, 100, 2.0))
    assert (said[-1].done_bytes, said[-1].total_bytes, said[-1].seconds) == (120, 280, 2.0)
    assert said[-1].ranks == [RankLoad(0, 100, 100, 2.0), RankLoad(1, 20, 80, 1.5), RankLoad(2, 0, 100, 0.0)]
    together(progress(0, 7, 0.0, "cache"))
    assert (said[-1].phase, said[-1].total_bytes, said[-1].ranks) == ("cache", 7, [])


def test_ranks_that_are_slower_than_rank_0_are_followed_until_all_have_loaded() -> None:
    said: list[LoadProgress] = []
    others = [progress(20, 80, 1.5)]
    with RankProgress(said.append, lambda: others) as together:
        together(progress(100, 100, 2.0))
        others[0] = progress(80, 80, 9.0)
    assert (said[-1].done_bytes, said[-1].total_bytes, said[-1].seconds) == (180, 180, 9.0)
    before = len(said)
    with RankProgress(said.append, lambda: others) as together:
        together(progress(100, 100, 2.0))
        together(progress(0, 7, 0.0, "cache"))
    # Nothing is said twice.
    weights = [one for one in said[before:] if one.phase == "weights"]
    assert len(weights) == len({(one.done_bytes, one.total_bytes) for one in weights})
