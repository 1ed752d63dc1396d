"""Which containers of a pod are ours, and how ours ended: service meshes and others inject containers of their own.

An injected sidecar may run for ever after our container has exited 0, or fail beside it. The phase of the pod says what
all containers do together, so a pod that runs once is judged by our container.
"""

from collections.abc import Mapping
from typing import Any

from plimsoll.operator.shape import mapping, mappings, text

#: The containers of pods that run once.
_ONCE = frozenset({"inspect", "quantize"})
#: The container that a pod is there for, by the pod's kind.
MAIN = _ONCE | {"server"}
#: Every container that the operator writes into a pod, with the init containers that bring a checkpoint.
OURS = MAIN | {"fetch", "copy"}


def own_phase(status: Mapping[str, Any]) -> tuple[str, bool]:
    """The phase that a pod would have without injected containers, and whether one of these holds the pod back.

    A kubelet reports a container as terminated a moment before it reports the phase of the pod. So a pod is held back
    only where another container has not ended, or has failed while ours exited 0. Native sidecars (init containers
    that restart) never hold a pod back: the kubelet ends them.
    """
    phase = text(status.get("phase"), "Pending")
    statuses = mappings(status.get("containerStatuses"))
    main = next((one for one in statuses if text(one.get("name")) in _ONCE), None)
    ended = _terminated(main) if main is not None else None
    if ended is None:
        return phase, False
    own = "Failed" if ended.get("exitCode") else "Succeeded"
    others_run = any(_terminated(one) is None for one in statuses if one is not main)
    return own, (others_run and phase not in ("Succeeded", "Failed")) or (own, phase) == ("Succeeded", "Failed")


def _terminated(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = mapping(status.get("state")).get("terminated")
    return None if found is None else mapping(found)
