"""Which notes on objects of ours cannot be read: anybody may write over them, and each counts as absent then."""

from collections.abc import Mapping
from typing import Any

from plimsoll.api.inspection import Inspection
from plimsoll.operator import kinds, names, parse
from plimsoll.operator.kinds import Kind
from plimsoll.operator.shape import decoded, mapping, moment, timestamp, whole

#: Of the event on an object with such a note.
REASON = "NoteIgnored"
#: What an event quotes of a note.
_SHOWN = 80


def unreadable(kind: Kind, raw: Mapping[str, Any], value: Any) -> tuple[str, ...]:
    """In words, each note of `raw` that the operator reads and cannot understand.

    Args:
        value: what was read of the object; None for a record without a report.
    """
    if kind is kinds.REPLICA_SET:
        return _of_replica_set(raw)
    if kind is kinds.POD:
        return _of_pod(raw)
    return _of_record(raw) if kind is kinds.CONFIG_MAP and value is None else ()


def _of_replica_set(raw: Mapping[str, Any]) -> tuple[str, ...]:
    notes, read = parse.annotations(raw), parse.replica_set(raw)
    failed = decoded(notes.get(names.FAILED))
    checks = {
        names.NUMBER: (whole(notes.get(names.NUMBER), -1) >= 0, "a revision number"),
        names.SPEC: (read.spec, "the spec of the revision, as JSON"),
        names.BUDGET: (read.budget, "the budget of the revision, as JSON"),
        names.INSPECTED: (read.source, "JSON with uri, digest, revision and bytes"),
        names.OUTPUT: (read.output, "JSON with job, uri and digest"),
        names.FAILED: (failed and _is_time(failed.get("at")), "JSON with reason, message and at"),
        names.GROUPS: (read.replicas >= 0, "a number of groups"),
        names.PROVEN: (notes.get(names.PROVEN) == "true", "true"),
    }
    return tuple(
        _words(f"metadata.annotations[{note}]", wanted, notes[note])
        for note, (fine, wanted) in checks.items()
        if note in notes and not fine
    )


def _is_time(value: Any) -> bool:
    """Seconds since the epoch as we write them, or a timestamp."""
    return moment(value) > 0 or value == 0 or timestamp(value) > 0


def _of_pod(raw: Mapping[str, Any]) -> tuple[str, ...]:
    note = parse.annotations(raw).get(names.PATIENCE)
    if note is None or whole(note, -1) >= 0:
        return ()
    return (_words(f"metadata.annotations[{names.PATIENCE}]", "a number of seconds", note),)


def _of_record(raw: Mapping[str, Any]) -> tuple[str, ...]:
    if names.SOURCE not in parse.labels(raw):
        return ()
    report = mapping(raw.get("data")).get(names.REPORT)
    is_report = isinstance(report, str) and Inspection.is_report(report)
    return (_words(f"data.{names.REPORT}", "the report of an inspection", "" if is_report else report),)


def _words(field: str, wanted: str, value: Any) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    found = f" (found {shown})" if value else ""
    # Any text there means that somebody, or an earlier version, gave the revision up.
    then = "the revision counts as failed" if names.FAILED in field else "the operator goes on without it"
    return f"{field}: must be {wanted}{found}; {then}. Remove or correct it"
