"""Whether an object of the cluster is one that we made: watches show no others, and those are left alone."""

from collections.abc import Mapping
from typing import Any

from plimsoll.operator import names, parse
from plimsoll.operator.cluster import ConflictError, NameTakenError

#: What says that an object is ours, and which deployment, job or source it belongs to.
_MARKS = (names.MANAGED_BY, names.DEPLOYMENT, names.JOB, names.SOURCE)


def check_ours(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> None:
    """Returns where `live` is what an apply of `wanted` made: a lost answer, a watch that lags, labels taken off.

    Raises:
        ConflictError: it goes with an earlier object that had the name of our owner, and is gone soon.
        NameTakenError: it is somebody else's, or another deployment's or job's.
    """
    owner, theirs = parse.controller(wanted), parse.controller(live)
    if owner and owner.get("uid") == theirs.get("uid"):
        return
    source = parse.labels(wanted).get(names.SOURCE)
    if not theirs and (_marks(wanted) == _marks(live) or (source and parse.labels(live).get(names.SOURCE) == source)):
        # A record is named by its source, and by nothing else: it is ours also without the other labels.
        return
    what, name = wanted["kind"], wanted["metadata"]["name"]
    if owner and (owner["kind"], owner["name"]) == (theirs.get("kind"), theirs.get("name")):
        raise ConflictError(f"{what} {name} goes with an earlier {owner['kind']} {owner['name']}")
    whose = f" (of {theirs.get('kind')} {theirs.get('name')})" if theirs else ""
    fix = f"rename the {owner['kind']}, or remove that {what}" if owner else f"remove that {what}"
    raise NameTakenError(f"there is a {what} {name} already{whose}, which is left as it is: {fix}")


def _marks(raw: Mapping[str, Any]) -> list[str | None]:
    tags = parse.labels(raw)
    return [tags.get(mark) for mark in _MARKS]
