"""Signs of life against bounds: a slow engine is none that hangs."""

from plimsoll.runtime.engine.transport.watch import LOADING_SILENCE_SECONDS, LOADING_STILL_SECONDS, Watch
from plimsoll.runtime.messages import EngineStats, Heartbeat, LoadProgress, StepOutputs

TURN = StepOutputs(outputs=[], stats=EngineStats())


def serving(hang: float = 20.0) -> Watch:
    watch = Watch(hang)
    watch.serves()
    return watch


def test_silence_is_suspect_at_half_of_the_bound_and_a_hang_at_all_of_it() -> None:
    watch = serving()
    watch.wait(9.5)
    assert (watch.suspect, watch.hung) == (False, "")
    watch.wait(0.5)
    assert (watch.suspect, watch.hung) == (True, "")
    watch.wait(10)
    assert watch.hung == "it gave no sign of life for 20 s"


def test_any_message_ends_silence() -> None:
    for message in (Heartbeat(progress=0), TURN):
        watch = serving()
        watch.wait(19)
        watch.hear(message)
        assert not watch.suspect
        watch.wait(9)
        assert not watch.suspect


def test_a_loop_that_stands_still_beside_a_heart_that_beats_is_a_hang() -> None:
    watch = serving()
    for _ in range(119):
        watch.wait(1)
        watch.hear(Heartbeat(progress=7))
    assert watch.hung == ""
    watch.wait(2)
    watch.hear(Heartbeat(progress=7))
    assert watch.hung == "nothing moved in it for 120 s"


def test_layers_of_a_long_step_are_progress() -> None:
    watch = serving()
    for layer in range(100):
        for _ in range(15):
            watch.wait(1)
            watch.hear(Heartbeat(progress=layer))
        assert not watch.suspect


def test_the_bound_of_progress_grows_with_the_slowest_part_of_a_step() -> None:
    watch = serving()
    for progress in (1, 2):
        for _ in range(50):
            watch.wait(1)
            watch.hear(Heartbeat(progress=progress - 1))
        watch.hear(Heartbeat(progress=progress))
    for _ in range(490):
        watch.wait(1)
        watch.hear(Heartbeat(progress=2))
    assert (watch.suspect, watch.hung) == (True, "")
    for _ in range(20):
        watch.wait(1)
        watch.hear(Heartbeat(progress=2))
    assert watch.hung


def test_loading_has_bounds_of_its_own_and_they_do_not_last() -> None:
    watch = Watch(20.0)
    watch.wait(LOADING_SILENCE_SECONDS - 1)
    assert watch.hung == ""
    watch.hear(LoadProgress(phase="weights", done_bytes=1, total_bytes=2, seconds=1.0))
    for _ in range(int(LOADING_STILL_SECONDS) - 1):
        watch.wait(1)
        watch.hear(Heartbeat(progress=0))
    assert watch.hung == ""
    watch.wait(1)
    watch.hear(Heartbeat(progress=0))
    assert watch.hung == f"nothing moved in it for {LOADING_STILL_SECONDS:.0f} s"
    other = Watch(20.0)
    other.wait(100)
    other.hear(TURN)
    other.serves()
    other.wait(20)
    assert other.hung
