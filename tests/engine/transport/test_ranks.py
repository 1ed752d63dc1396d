"""A model over several ranks: the same answers as on one, and a group that lives and dies together."""

import asyncio
import ctypes
import os
import signal
from collections.abc import Sequence
from types import SimpleNamespace

import msgspec
import psutil
import pytest
from torch import Tensor

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.transport.client import EngineClient, EngineDead
from plimsoll.runtime.engine.worker import ranks
from plimsoll.runtime.kernels import native_group
from plimsoll.runtime.kernels.build import NativeUnavailableError
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.llm import LLM, RequestOutput
from plimsoll.runtime.server.status_port import StatusPort
from tests.support.checkpoints import UNEVEN, make_checkpoint
from tests.support.clients import SECONDS, answer, drain, request, until

SIZE = 2
PR_SET_CHILD_SUBREAPER = 36
"""As <linux/prctl.h> has it."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """Heads and a width that ranks share unevenly."""
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", **UNEVEN)
    return EngineConfig(
        model=str(folder), precision="float32", device="cpu", kv_cache_bytes=1 << 20, block_size=16, tensor=SIZE
    )


def members(client: EngineClient) -> list[psutil.Process]:
    """Processes of the ranks, rank 0 first."""
    assert client.info is not None
    return [psutil.Process(rank.pid) for rank in client.info.ranks]


def test_a_size_that_does_not_split_is_refused_before_any_rank_starts(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr(ranks, "RankProcess", lambda *arguments: started.append(arguments[1]))
    with pytest.raises(
        SpecError, match=r"6 attention heads cannot be split over 7 \(found 7\)\. Sizes that work: 1 to 6"
    ):
        Engine(msgspec.structs.replace(config, tensor=7))
    assert not started


def test_answers_are_those_of_one_rank(config: EngineConfig) -> None:
    options = {"precision": "float32", "device": "cpu", "kv_cache_bytes": 1 << 18, "block_size": 16, "threads": 1}
    prompts = ["a story", "a longer story of the sea and of ships", "a story"]
    params = SamplingParams(max_tokens=24, temperature=0.0, logprobs=2, prompt_logprobs=1, ignore_eos=True)

    def answers(tensor: int) -> list[RequestOutput]:
        # A step takes few tokens: prompts run in chunks.
        with LLM(config.model, tensor=tensor, max_batched_tokens=16, **options) as llm:
            found = llm.generate(prompts * 3, params) + llm.generate(prompts, params)
            llm.engine.check_integrity()
            assert [rank.rank for rank in llm.engine.ready.ranks] == (list(range(tensor)) if tensor > 1 else [])
            return found

    for one, several in zip(answers(1), answers(2), strict=True):
        assert one.outputs[0].token_ids == several.outputs[0].token_ids
        assert one.num_cached_tokens == several.num_cached_tokens
        for mine, theirs in (
            (one.outputs[0].logprobs, several.outputs[0].logprobs), (one.prompt_logprobs, several.prompt_logprobs)
        ):  # fmt: skip
            assert mine is not None
            assert theirs is not None
            for known, found in zip(mine, theirs, strict=True):
                assert (known is None) == (found is None)
                if known is not None and found is not None:
                    assert known.chosen.logprob == pytest.approx(found.chosen.logprob, abs=1e-4)


def test_greedy_rows_send_their_best_alone_and_answer_as_if_all_logits_were_gathered(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: set[tuple[int, ...]] = set()
    gather = native_group.SharedGroup.gather

    def counted(self: native_group.SharedGroup, tensor: Tensor, each: Sequence[int]) -> Tensor | None:
        widths.add(tuple(each))
        return gather(self, tensor, each)

    monkeypatch.setattr(native_group.SharedGroup, "gather", counted)
    prompts = ["a story", "a longer story of the sea and of ships", "ships"]
    greedy = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    drawn = SamplingParams(max_tokens=24, temperature=1.5, seed=3, ignore_eos=True)
    changed = {
        "logprobs": 0, "logit_bias": {7: 0.5}, "min_tokens": 24, "presence_penalty": 0.5, "repetition_penalty": 1.1,
    }  # fmt: skip
    with LLM(config.model, tensor=2, kv_cache_bytes=1 << 20, precision="float32", block_size=16) as llm:

        def tokens(params: SamplingParams | list[SamplingParams]) -> list[list[int]]:
            widths.clear()
            return [list(one.outputs[0].token_ids) for one in llm.generate(prompts, params)]

        best = tokens(greedy)
        assert widths == {(2, 2)}
        whole = tokens(msgspec.structs.replace(greedy, logprobs=0))
        assert best == whole
        (full,) = widths
        assert sum(full) == llm.engine.facts.vocab_size
        alone = tokens(drawn)
        assert widths == {full}
        assert tokens([greedy, drawn, greedy]) == [best[0], alone[1], best[2]]
        assert widths == {full}
        for name, value in changed.items():
            stops = {"ignore_eos": name != "min_tokens"}
            tokens(msgspec.structs.replace(greedy, **{name: value}, **stops))
            assert widths == {full}, name
        llm.engine.check_integrity()


def test_startup_counts_the_bytes_of_all_ranks_and_of_each(shared: EngineClient) -> None:
    info, weights = shared.info, shared.phases["weights"]
    assert info is not None
    assert [one.rank for one in weights.ranks] == [one.rank for one in info.ranks] == list(range(SIZE))
    assert [one.done_bytes for one in weights.ranks] == [one.weights for one in info.ranks]
    assert weights.done_bytes == weights.total_bytes == sum(one.weights for one in info.ranks)
    assert info.startup["load"] == max(one.load for one in info.ranks)
    page = StatusPort(0.0, local=True)
    page.service = SimpleNamespace(engine=shared, ready_at=None)  # type: ignore[assignment]
    startup = page._startup()
    assert startup["load"]["bytes"] == startup["load"]["total"] == weights.total_bytes
    assert [(one["rank"], one["bytes"], one["total"]) for one in startup["ranks"]] == [
        (one.rank, one.weights, one.weights) for one in info.ranks
    ]
    assert all(one["seconds"] > 0 for one in startup["ranks"])


@pytest.mark.parametrize(("rank", "how"), [(1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_rank_that_dies_or_hangs_under_load_takes_the_group_with_it_and_it_comes_back(
    shared: EngineClient, loop: asyncio.Runner, rank: int, how: signal.Signals
) -> None:
    async def test() -> None:
        before, restarts, old = await answer(shared, request("before")), shared.restarts, members(shared)
        stream = shared.generate(request("long", 200))
        await anext(stream)
        os.kill(old[rank].pid, how)
        async with asyncio.timeout(SECONDS):
            with pytest.raises(EngineDead):
                await drain(stream)
        await until(lambda: not any(one.is_running() and one.status() != "zombie" for one in old))
        await shared.available(SECONDS)
        assert shared.restarts == restarts + 1
        assert await answer(shared, request("after")) == before

    loop.run(test())


def test_the_others_end_with_rank_0(shared: EngineClient, loop: asyncio.Runner) -> None:
    async def test() -> None:
        # As the first process of a container does, this one inherits the children of a process that ends.
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
        restarts, old = shared.restarts, members(shared)
        os.kill(old[0].pid, signal.SIGKILL)
        await until(lambda: shared.restarts == restarts + 1)
        await until(lambda: not any(psutil.pid_exists(one.pid) for one in old))
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0) == 0
        await shared.available(SECONDS)
        assert await answer(shared, request("after"))

    loop.run(test())


def test_a_step_that_a_rank_did_not_expect_ends_the_group(config: EngineConfig) -> None:
    with LLM(config.model, tensor=2, kv_cache_bytes=1 << 20, precision="float32") as llm:
        llm.engine.runner._number += 1
        with pytest.raises(GroupError, match=r"expected step|has ended|rank 1"):
            llm.generate(["a story"] * 2, SamplingParams(max_tokens=8))
        with pytest.raises(GroupError, match="rank 1"):
            llm.engine.check()


def test_a_rank_that_cannot_load_gives_its_reason(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ranks.RankProcess.__init__

    def broken(self: ranks.RankProcess, config: EngineConfig, *rest: int) -> None:
        made(self, msgspec.structs.replace(config, model="/nowhere"), *rest)

    monkeypatch.setattr(ranks.RankProcess, "__init__", broken)
    with pytest.raises(PlimsollError, match=r"rank 1: .*/nowhere"):
        LLM(config.model, tensor=2, kv_cache_bytes=1 << 20)


def test_ranks_need_the_native_kernels(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NativeUnavailableError("there is no compiler")

    monkeypatch.setattr(native_group, "native_library", missing)
    with pytest.raises(PlimsollError, match=r"tensor: ranks share memory .*there is no compiler .*Use 1"):
        LLM(config.model, tensor=2, kv_cache_bytes=1 << 20)


def test_a_group_that_cannot_be_started_again_twice_is_given_up(
    shared: EngineClient, loop: asyncio.Runner, config: EngineConfig
) -> None:
    async def test() -> None:
        os.rename(config.model, f"{config.model}.gone")
        os.kill(members(shared)[1].pid, signal.SIGKILL)
        async with asyncio.timeout(SECONDS):
            assert "could not be started again 2 times in a row" in await shared.given_up()
        assert shared.restarts == before + 2

    before = shared.restarts
    loop.run(test())
