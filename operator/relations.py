"""What the cache keeps of an object, and what that object belongs to."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from plimsoll.operator import kinds, names, parse, parse_jobs
from plimsoll.operator.build.source import draft_key, output_key
from plimsoll.operator.entries import Brief, Ref
from plimsoll.operator.kinds import Kind
from plimsoll.operator.shape import mapping, text, whole

SourceKey = Callable[[str, Mapping[str, Any]], str | None]
"""The key of the source that a spec in a namespace names; None for a spec that names none."""

_PHASE = re.compile(r"[A-Za-z]{1,40}")
#: On an EndpointSlice, by Kubernetes: the Service whose addresses it has.
_SERVICE = "kubernetes.io/service-name"
#: Of these only the parsed value stays.
PARSED = (kinds.POD, kinds.NODE, kinds.ENDPOINT_SLICE, kinds.CONFIG_MAP)


def relations(kind: Kind, raw: Mapping[str, Any], source_key: SourceKey) -> tuple[Any, list[Ref]]:
    """The value of an entry (None for objects that are only compared), and its references."""
    about, tags = parse.meta(raw), parse.labels(raw)
    namespace, name = text(about.get("namespace")), text(about.get("name"))
    spec = mapping(raw.get("spec"))
    phase = text(mapping(raw.get("status")).get("phase"), "Pending")
    # A name of a metric's series.
    phase = phase if _PHASE.fullmatch(phase) else "Pending"
    if kind is kinds.DEPLOYMENT:
        source, job = source_key(namespace, spec), text(mapping(spec.get("model")).get("quantizationJob")) or None
        refs: list[Ref] = [("deployment", namespace, name)]
        draft = draft_key(namespace, spec)
        refs += [("source", namespace, key) for key in dict.fromkeys((source, draft)) if key]
        refs += [("waits", namespace, job)] if job else []
        return Brief(phase, source, whole(about.get("generation")), job, draft), refs
    if kind is kinds.QUANTIZATION:
        source, written = source_key(namespace, spec), parse_jobs.quantizing(raw).output
        refs = [("job", namespace, name), ("waits", namespace, name)]
        refs.append(("output", namespace, parse_jobs.output_place(raw)))
        refs += [("source", namespace, source)] if source else []
        refs += [("source", namespace, output_key(namespace, written))] if written else []
        return Brief(phase, source, whole(about.get("generation"))), refs
    return _value(kind, raw, tags), _belongs(kind, raw, namespace, tags)


def _belongs(kind: Kind, raw: Mapping[str, Any], namespace: str, tags: Mapping[str, str]) -> list[Ref]:
    if names.DEPLOYMENT in tags:
        output = parse.replica_set(raw).output if kind is kinds.REPLICA_SET else None
        # What it serves is inspected for it, when no other deployment names that any more.
        kept: list[Ref] = [("source", namespace, output_key(namespace, output))] if output else []
        return [("deployment", namespace, tags[names.DEPLOYMENT]), *kept]
    if names.JOB in tags:
        return [("job", namespace, tags[names.JOB])]
    if names.SOURCE in tags:
        return [("source", namespace, tags[names.SOURCE])]
    return _owned(raw, namespace) or ([("shared", namespace, "")] if kind in kinds.CHILDREN else [])


def _owned(raw: Mapping[str, Any], namespace: str) -> list[Ref]:
    """By the controller, of an object that has lost the label that names its deployment or job."""
    which = {kinds.DEPLOYMENT.name: "deployment", kinds.QUANTIZATION.name: "job"}
    found = parse.controller(raw)
    kind = text(found.get("kind"))
    return [(which[kind], namespace, text(found.get("name")))] if kind in which else []


def _value(kind: Kind, raw: Mapping[str, Any], tags: Mapping[str, str]) -> Any:
    if kind is kinds.POD:
        return parse.pod(raw)
    if kind is kinds.NODE:
        return parse.node(raw)
    if kind is kinds.ENDPOINT_SLICE:
        # Slices of the Service beside, for metrics, have the same labels and call every pod ready.
        own = tags.get(_SERVICE) == tags.get(names.DEPLOYMENT)
        return parse.ready_endpoints(raw) if own else frozenset()
    if kind is kinds.CONFIG_MAP:
        # One text an object: each may take a part of a second to read.
        return parse.inspection([mapping(raw.get("data")).get(names.REPORT)])
    return None
