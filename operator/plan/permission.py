"""What this cluster's administrators let a tenant name: sources, with where they are fetched from, and accounts."""

import fnmatch
import re
from urllib.parse import urlsplit

from plimsoll.api.checkpoint_source import CheckpointSource
from plimsoll.api.deployment import PodPlacement
from plimsoll.api.draft_model import DraftModel
from plimsoll.api.errors import SpecError
from plimsoll.api.forbidden import forbidden_host
from plimsoll.operator.settings import Settings

DRAFT = "spec.serving.draft.source"
#: `PATTERN at ENDPOINT`: a source of that pattern, fetched from that endpoint.
_PLACED = re.compile(r"(?P<pattern>.+) at (?P<endpoint>https?://\S+)", re.DOTALL)


class NotAllowedError(SpecError):
    """The operator's configuration does not allow it. `reason` is the condition's."""

    reason = "SourceNotAllowed"


class AccountNotAllowedError(NotAllowedError):
    """The spec names a service account that the operator's settings do not allow."""

    reason = "ServiceAccountNotAllowed"


def check_source(model: CheckpointSource, pod: PodPlacement, settings: Settings) -> None:
    """Raises SpecError for what no cluster has, and NotAllowedError for what this one's operator does not allow."""
    if model.source.startswith("file://"):
        raise SpecError(
            "names a path of one machine; a cluster has many", field="spec.model.source", value=model.source,
            fix="Use pvc://CLAIM/PATH, hf://, s3:// or oci://",
        )  # fmt: skip
    check_allowed(model.source, "spec.model.source", model, pod, settings)
    if model.endpoint is None:
        return
    if not _any(model.endpoint, settings.allowed_endpoints):
        raise NotAllowedError(
            "this cluster's operator does not allow it", field="spec.model.endpoint", value=model.endpoint,
            fix=f"Allowed are {', '.join(settings.allowed_endpoints) or 'none'}",
        )  # fmt: skip
    why = forbidden_host(urlsplit(model.endpoint).hostname or "")
    if why:
        raise NotAllowedError(
            why, field="spec.model.endpoint", value=model.endpoint, fix="Use a public or a Service's name"
        )


def check_draft(draft: DraftModel, model: CheckpointSource, pod: PodPlacement, settings: Settings) -> None:
    """Raises as `check_source`, for the draft of a deployment of `model`."""
    if draft.source.startswith("file://"):
        raise SpecError(
            "names a path of one machine; a cluster has many", field=DRAFT, value=draft.source,
            fix="Use pvc://CLAIM/PATH, hf://, s3:// or oci://",
        )  # fmt: skip
    check_allowed(draft.source, DRAFT, model, pod, settings)


def check_allowed(uri: str, field: str, model: CheckpointSource, pod: PodPlacement, settings: Settings) -> None:
    """Hold what is read to the operator's list, together with the server that answers for it.

    An entry that names repositories or buckets means them at the usual service of their kind: `hf://corp/*` is not met
    by a repository of that name on a server of the tenant's. `hf://corp/* at https://hub.example` is for another one.
    An entry for all of a kind, `hf://*`, holds at every endpoint that is allowed.

    Args:
        uri: of the model or of a dataset, found in `field`.
        model: where the endpoint is named; it also answers for datasets of the same kind.

    Raises:
        NotAllowedError: no entry matches, or not at this endpoint, or not through this proxy.
    """
    scheme = uri.partition("://")[0]
    same = model.endpoint is not None and model.source.partition("://")[0] == scheme
    endpoint = model.endpoint if same else None
    plain = [entry for entry in settings.allowed_sources if not _PLACED.fullmatch(entry)]
    placed = [match for entry in settings.allowed_sources if (match := _PLACED.fullmatch(entry))]
    named = [entry for entry in plain if fnmatch.fnmatchcase(uri, entry)]
    if any(_all_of_a_kind(entry) for entry in named):
        return
    if endpoint is None:
        found = bool(named)
    else:
        found = any(_any(uri, (one["pattern"],)) and _any(endpoint, (one["endpoint"],)) for one in placed)
    if not found and endpoint is not None and (named or any(_any(uri, (one["pattern"],)) for one in placed)):
        raise NotAllowedError(
            f"this cluster's operator does not allow {uri[:200]} from there", field="spec.model.endpoint",
            value=endpoint, fix=f"Allowed are {_shown(settings)}. An administrator writes 'PATTERN at ENDPOINT'",
        )  # fmt: skip
    if not found:
        raise NotAllowedError(
            "this cluster's operator does not allow it", field=field, value=uri, fix=f"Allowed are {_shown(settings)}"
        )
    if scheme in ("hf", "s3"):
        _check_proxy(uri, pod, settings)


def check_account(pod: PodPlacement, namespace: str, settings: Settings) -> None:
    """Raises AccountNotAllowedError for a ServiceAccount besides `default` that is not listed for this namespace."""
    name = pod.service_account_name or "default"
    if name == "default" or _any(f"{namespace}/{name}", settings.allowed_service_accounts):
        return
    here = [one for one in settings.allowed_service_accounts if fnmatch.fnmatchcase(namespace, one.partition("/")[0])]
    raise AccountNotAllowedError(
        "this cluster's operator does not allow it: clouds give identities to pods by their ServiceAccount",
        field="spec.pod.serviceAccountName", value=name,
        fix=f"Allowed are default{''.join(f', {one}' for one in here)}. An administrator adds {namespace}/{name} to "
        "settings.allowedServiceAccounts",
    )  # fmt: skip


def _check_proxy(uri: str, pod: PodPlacement, settings: Settings) -> None:
    """A proxy may answer in the place of any server: at once over http, with authorities of its own over https."""
    for field in ("http", "https"):
        proxy = getattr(pod.proxy, field)
        if proxy and not _any(proxy, settings.allowed_proxies):
            raise NotAllowedError(
                f"this cluster's operator does not allow {uri[:200]} through it", field=f"spec.pod.proxy.{field}",
                value=proxy, fix=f"Allowed are {', '.join(settings.allowed_proxies) or 'none'} "
                "(settings.allowedProxies)",
            )  # fmt: skip


def _all_of_a_kind(pattern: str) -> bool:
    """Whether the pattern says nothing of which repository, bucket, claim or image is meant."""
    return pattern.partition("://")[2].removeprefix("datasets/").strip("*") == "" and (
        "://" in pattern or pattern.strip("*") == ""
    )


def _any(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


def _shown(settings: Settings) -> str:
    return ", ".join(settings.allowed_sources) or "none"
