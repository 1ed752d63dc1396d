"""Where a checkpoint is, and how it is reached: a model's, a draft's, or what a job quantizes."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from plimsoll.api import rules
from plimsoll.api.errors import SpecError
from plimsoll.api.fields import ObjectName, Part
from plimsoll.api.rules import RULES
from plimsoll.api.source import endpoint_host, parse_source


def _address(value: str) -> str:
    try:
        parse_source(value)
    except SpecError as error:
        raise ValueError(f"{error.message}. {error.fix}") from None
    if not value.startswith("file://") and re.search(rules.STRAY, value.partition("://")[2]):
        raise ValueError(rules.STRAY_WORDS)
    return value


Address = Annotated[str, Field(max_length=1024), AfterValidator(_address)]
"""Where a checkpoint is: the deployment's, a draft's, or what a job quantizes."""
SourceAddress = Annotated[Address, Field(json_schema_extra={RULES: rules.SOURCE})]
"""The same with its rules in the CRD."""


class CheckpointSource(Part):
    """Where a checkpoint is, and how it is reached."""

    source: SourceAddress
    """Where the checkpoint is, a Hugging Face folder or one GGUF file: `hf://ORG/NAME[@REVISION][/FILE.gguf]` on a hub,
    `pvc://CLAIM/PATH` on a PersistentVolumeClaim, `s3://BUCKET/PREFIX` in object storage, or `oci://IMAGE@sha256:DIGEST`
    in an image. A branch of a hub is resolved to its commit once, when it is applied."""
    credentials_secret: ObjectName | None = None
    """A Secret of this namespace that opens the source. For hf:// its key HF_TOKEN; for s3:// AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY, with AWS_SESSION_TOKEN if there is one; for oci:// a kubernetes.io/dockerconfigjson pull
    secret. Only the container that fetches sees it."""
    endpoint: Annotated[str, Field(max_length=512, json_schema_extra={RULES: rules.ENDPOINT_ADDRESS})] | None = None
    """The service that answers for the source: a mirror of the hub (what HF_ENDPOINT is elsewhere), or the address of
    an S3 service, such as https://minio.storage.svc:9000. Goes with hf:// and s3://."""
    cache_claim: ObjectName | None = None
    """A PersistentVolumeClaim of this namespace that keeps what is fetched from hf:// or s3://: later pods start from
    it, and pods that start together fetch once. Pods on several nodes need a claim that is ReadWriteMany."""

    content_version: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Any text, such as 2026-01-31, for what lies at the source now. A new value has the source inspected again, and
    what is found becomes a new revision; pods of the old one refuse other files than were inspected (SourceChanged)."""

    @field_validator("credentials_secret", "cache_claim", "endpoint", "content_version")
    @classmethod
    def _goes_with(cls, value: str | None, info: ValidationInfo) -> str | None:
        scheme = str(info.data.get("source", "file://")).partition("://")[0]
        refused = {"credentials_secret": ("pvc", ""), "content_version": ("oci", "")}
        alone = refused.get(info.field_name or "", ("pvc", "oci", ""))
        if value is not None and scheme in alone:
            raise ValueError(f"does not go with {scheme + '://' if scheme else 'quantizationJob'}. Remove it")
        if value is not None and info.field_name == "endpoint":
            try:
                endpoint_host(value)
            except SpecError as error:
                raise ValueError(f"{error.message}. {error.fix}") from None
        return value
