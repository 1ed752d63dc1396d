"""The operator's own configuration: one YAML file, mounted by the chart."""

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from plimsoll.api.errors import SpecError


class Settings(BaseModel):
    """What the operator may do and what it starts."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, populate_by_name=True)

    namespaces: tuple[str, ...] = ()
    """Namespaces it serves; none means all of the cluster."""
    runtime_image: str = "plimsoll.dev/runtime:dev"
    """What model pods on CPUs run, and inspect pods."""
    cuda_runtime_image: str | None = None
    """What model pods and quantization jobs on GPUs run; without it these are refused unless they name
    `spec.pod.image`."""
    image_pull_secrets: tuple[str, ...] = ()
    allowed_sources: tuple[str, ...] = ("hf://*", "pvc://*", "s3://*", "oci://*")
    """Shell patterns; a source or a job's dataset that none of them matches is refused. A pattern that names more than
    the kind holds at the usual service of the kind, and `PATTERN at ENDPOINT` at that endpoint."""
    allowed_endpoints: tuple[str, ...] = ("https://*",)
    """Shell patterns for `spec.model.endpoint`."""
    allowed_proxies: tuple[str, ...] = ()
    """Shell patterns for `spec.pod.proxy`, where a pattern of `allowed_sources` names more than the kind."""
    allowed_service_accounts: tuple[str, ...] = ()
    """Shell patterns NAMESPACE/NAME for `spec.pod.serviceAccountName`; `default` is always allowed."""
    client_namespaces: tuple[str, ...] = ()
    """Namespaces besides the deployment's own whose pods may call the endpoint."""
    monitoring_namespaces: tuple[str, ...] = ("monitoring",)
    """Namespaces that Prometheus scrapes from."""
    monitor_labels: dict[str, str] = {}
    """On the monitors of deployments: what your Prometheus selects by."""
    operator_namespace: str = "plimsoll-system"
    image_volumes: Literal["auto", "never"] = "auto"
    """`auto` mounts oci:// sources as image volumes where API server and nodes can; else they are copied."""
    lease_name: str = "plimsoll-operator"
    workers: Annotated[int, Field(ge=1, le=64)] = 16
    health_port: int = 8080
    """/healthz, /readyz and /metrics; 0 takes none."""


def load_settings(path: Path | None = None) -> Settings:
    """Reads $PLIMSOLL_OPERATOR_CONFIG, or `path`; without either everything has its default.

    Raises:
        SpecError: not YAML, an unknown field or a wrong value; the field is named.
    """
    given = path or (Path(os.environ["PLIMSOLL_OPERATOR_CONFIG"]) if "PLIMSOLL_OPERATOR_CONFIG" in os.environ else None)
    if given is None:
        return Settings()
    try:
        found = yaml.safe_load(given.read_text(encoding="utf-8")) or {}
        if not isinstance(found, dict):
            raise SpecError("must be a mapping of settings", field=str(given), value=found)
        return Settings.model_validate(found)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"cannot be read: {' '.join(str(error).split())}", field=str(given)) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(first["msg"], field=f"{given}: {where}", value=first["input"]) from None
