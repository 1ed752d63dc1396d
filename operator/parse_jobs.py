"""Raw Jobs and QuantizationJobs to the snapshot's values. Pure; what is missing or odd becomes a default."""

from collections.abc import Mapping
from typing import Any, Literal

from plimsoll.api.errors import CheckpointError
from plimsoll.api.job_progress import JobProgress
from plimsoll.operator.parse import Raw, controller, meta, timestamp
from plimsoll.operator.snapshot import BatchJob, Output, Quantizing


def batch_job(raw: Raw) -> BatchJob:
    about = meta(raw)
    ended: Literal["", "Complete", "Failed"] = ""
    why: Mapping[str, Any] = {}
    for one in (raw.get("status") or {}).get("conditions") or ():
        if one.get("status") == "True" and one.get("type") in ("Complete", "Failed"):
            ended, why = one["type"], one
    return BatchJob(
        name=about.get("name", ""),
        uid=about.get("uid", ""),
        owner=controller(raw),
        ended=ended,
        reason=str(why.get("reason") or ""),
        message=str(why.get("message") or ""),
        ended_at=timestamp(why.get("lastTransitionTime")),
        deleting=bool(about.get("deletionTimestamp")),
        suspended=(raw.get("spec") or {}).get("suspend") is True,
    )


def quantizing(raw: Raw) -> Quantizing:
    """A QuantizationJob as deployments see it."""
    status = raw.get("status") or {}
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    complete, failed = (conditions.get(kind) or {} for kind in ("Complete", "Failed"))
    name, output = meta(raw).get("name", ""), status.get("output") or {}
    written = None
    if complete.get("status") == "True" and output.get("uri") and output.get("digest"):
        written = Output(name, str(output["uri"]), str(output["digest"]))
    refused = status.get("phase") == "Refused"
    accepted = conditions.get("Accepted") or {}
    has_failed = failed.get("status") == "True"
    return Quantizing(
        name=name,
        phase=str(status.get("phase") or "Pending"),
        percent=int((status.get("progress") or {}).get("percent") or 0),
        message=str((failed.get("message") if has_failed else status.get("message")) or ""),
        output=written,
        failed=str(failed.get("reason")) if has_failed else str(accepted.get("reason")) if refused else None,
    )


def output_place(raw: Raw) -> str:
    """Where a QuantizationJob writes."""
    return str((raw.get("spec") or {}).get("output") or "")


def progress(data: Any) -> JobProgress | None:
    """A job's status page; None when it is none."""
    try:
        return JobProgress.decode(data)
    except CheckpointError:
        return None
