"""The group of an engine whose ranks are on several machines, as its rank 0 sees it."""

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence

import zmq

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.api.group import GROUP_KEY
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.crew import Crew, RankProcess, Seat
from plimsoll.runtime.engine.group.curve import endpoint, read_secret
from plimsoll.runtime.engine.group.hub import Hub
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.engine.group.seated import LeadingGroup, MeetingStore, StepsOut
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.torch_group import gloo
from plimsoll.runtime.messages import LoadProgress, RankReady

log = logging.getLogger(__name__)

OnWaiting = Callable[[list[str]], None]

WAITING_SECONDS = 1.0
"""Between two words on who has not joined."""


class NodeRanks:
    """Ranks of this machine and of others, under one epoch. `close` ends it; so does the end of this process."""

    def __init__(
        self,
        config: EngineConfig,
        takes: Sequence[int],
        membership: Membership,
        digest: str,
        on_waiting: OnWaiting | None = None,
    ) -> None:
        """Waits for all machines, however long that takes, and has each start its ranks.

        Args:
            takes: bytes of each rank, all of them in order.

        Raises SpecError for what this machine cannot do, GroupError where a machine is lost meanwhile, OSError.
        """
        nodes, size = membership.nodes, len(takes)
        if size % nodes or size == 1:
            raise SpecError(
                f"must be a multiple of the {nodes} nodes", field="spec.parallelism.tensor", value=size,
                fix=f"Use {nodes * max(1, size // nodes)} or {nodes * (size // nodes + 1)}",
            )  # fmt: skip
        self.size = size
        self._takes = takes
        self._place = membership
        self._secret = read_secret(membership.key_file, GROUP_KEY)
        self._epoch = secrets.token_hex(8)
        self._crew: Crew | None = None
        self._steps: StepsOut | None = None
        self._hub = Hub(membership, self._secret, self._epoch, digest, self._own_failure, _give_up)
        try:
            self._wait(on_waiting)
            self._begin(config)
        except BaseException:
            self.close()
            raise

    @property
    def failure(self) -> str | None:
        """Why the group is not whole any more, None while it is."""
        return self._hub.failure

    @property
    def leaving(self) -> list[str]:
        """Names of machines that are about to stop, and wait until they may."""
        return self._hub.leaving

    def form(self) -> LeadingGroup:
        """Rank 0's end of the collectives, once all ranks have met. Raises GroupError."""
        store = MeetingStore(self._hub.put, self._hub.get)
        try:
            work = gloo(store, 0, self.size, self._place.address)
        except RuntimeError as error:
            raise GroupError(self.failure or f"rank 0 cannot reach another rank: {error}") from None
        assert self._steps is not None
        self._steps.gather(lambda: self.failure)
        return LeadingGroup(work, self.size, lambda: self.failure, self._steps)

    def check(self) -> None:
        """Raises GroupError where the group is not whole any more."""
        if self.failure is not None:
            raise GroupError(self.failure)

    def loads(self) -> list[LoadProgress | None]:
        """How far each of the others has loaded its weights, rank 1 first; None where nothing is known."""
        assert self._crew is not None
        known = {one.rank: one.weights for one in self._crew.processes} | self._hub.loads()
        return [known.get(rank) for rank in range(1, self.size)]

    def wait_ready(self) -> list[RankReady]:
        """Until every rank has loaded; what each observed. Raises PlimsollError or GroupError in the words of the one
        that has not."""
        assert self._crew is not None
        while True:
            if self.failure is not None:
                if self._hub.refused or self._crew.refused:
                    raise PlimsollError(self.failure, field="tensor", value=self.size)
                raise GroupError(self.failure)
            found = [*self._crew.ready, *self._hub.ready()]
            if len(found) == self.size - 1:
                return sorted(found, key=lambda one: one.rank)
            time.sleep(0.01)

    def serves(self) -> None:
        """Notes that a token was generated."""
        self._hub.serving = True

    def peaks(self) -> dict[int, int]:
        """Most resident bytes by rank, of ranks of other machines."""
        return self._hub.peaks()

    def close(self) -> None:
        """Ends all of them. Safe to call twice."""
        self._hub.close()
        if self._crew is not None:
            self._crew.close()

    def _wait(self, on_waiting: OnWaiting | None) -> None:
        due, known = 0.0, list[str]()
        while missing := self._hub.missing():
            self.check()
            if missing != known:
                known = missing
                log.info("waiting for %s to join epoch %s", ", ".join(missing), self._epoch)
            if time.monotonic() >= due:
                due = time.monotonic() + WAITING_SECONDS
                if on_waiting is not None:
                    on_waiting(missing)
            time.sleep(0.02)
        if on_waiting is not None:
            on_waiting([])

    def _begin(self, config: EngineConfig) -> None:
        place, size = self._place, self.size
        try:
            self._steps = steps = StepsOut(place.address, self._secret, self._epoch, size)
        except zmq.ZMQError as error:
            raise OSError(f"steps cannot be announced at {place.address}: {error}") from None
        seat = Seat(
            epoch=self._epoch, leader=endpoint(place.address, place.port), steps=steps.address, address=place.address,
            key_file=place.key_file,
        )  # fmt: skip
        self._hub.begin(config, self._takes, steps.address)
        self._crew = Crew(lambda rank: RankProcess(config, rank, size, 0, None, seat), range(1, size // place.nodes))

    def _own_failure(self) -> str | None:
        return None if self._crew is None else self._crew.failure


def _give_up() -> None:
    """Ends rank 0's process: it is in the middle of a call that does not notice the end of the group."""
    log.error("rank 0 does not notice the end of the group, and is ended")
    os._exit(1)
