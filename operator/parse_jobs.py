"""Raw Jobs and QuantizationJobs to the snapshot's values. Pure; what is missing or odd becomes a default."""

from collections.abc import Mapping
from typing import Any, Literal

from plimsoll.api.errors import CheckpointError
from plimsoll.api.job_progress import JobProgress
from plimsoll.operator.parse import Raw, meta, owner
from plimsoll.operator.shape import mapping, mappings, text, timestamp, whole
from plimsoll.operator.snapshot import BatchJob, Output, Quantizing


def batch_job(raw: Raw) -> BatchJob:
    """A batch/v1 Job as the planner takes it."""
    about = meta(raw)
    ended: Literal["", "Complete", "Failed"] = ""
    why: Mapping[str, Any] = {}
    for one in mappings(mapping(raw.get("status")).get("conditions")):
        if one.get("status") == "True" and one.get("type") in ("Complete", "Failed"):
            ended, why = one["type"], one
    return BatchJob(
        name=text(about.get("name")),
        uid=text(about.get("uid")),
        owner=owner(raw),
        ended=ended,
        reason=text(why.get("reason")),
        message=text(why.get("message")),
        ended_at=timestamp(why.get("lastTransitionTime")),
        deleting=bool(about.get("deletionTimestamp")),
        created=timestamp(about.get("creationTimestamp")),
        suspended=mapping(raw.get("spec")).get("suspend") is True,
    )


def quantizing(raw: Raw) -> Quantizing:
    """A QuantizationJob as deployments see it."""
    status = mapping(raw.get("status"))
    conditions = {text(one.get("type")): one for one in mappings(status.get("conditions"))}
    complete, failed = (conditions.get(kind) or {} for kind in ("Complete", "Failed"))
    name, output = text(meta(raw).get("name")), mapping(status.get("output"))
    uri, digest = text(output.get("uri")), text(output.get("digest"))
    refused = status.get("phase") == "Refused"
    accepted = conditions.get("Accepted") or {}
    has_failed = failed.get("status") == "True"
    return Quantizing(
        name=name,
        phase=text(status.get("phase"), "Pending"),
        percent=whole(mapping(status.get("progress")).get("percent")),
        message=text((failed if has_failed else status).get("message")),
        output=Output(name, uri, digest) if complete.get("status") == "True" and uri and digest else None,
        failed=text(failed.get("reason")) if has_failed else text(accepted.get("reason")) if refused else None,
    )


def output_place(raw: Raw) -> str:
    """Where a QuantizationJob writes."""
    return text(mapping(raw.get("spec")).get("output"))


def progress(data: Any) -> JobProgress | None:
    """A job's status page, or its container's last words; None when they are none."""
    try:
        return JobProgress.decode(data)
    except CheckpointError:
        return None
