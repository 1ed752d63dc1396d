"""`plimsoll crds`: the CustomResourceDefinitions of this version, for `kubectl apply --server-side -f -`."""

from typing import Annotated

import typer


def crds(
    reference: Annotated[bool, typer.Option("--reference", help="Their fields as Markdown instead.")] = False,
    kind: Annotated[str | None, typer.Option(help="Only this one: ModelDeployment or QuantizationJob.")] = None,
) -> None:
    """Print what a cluster must know of ModelDeployments and QuantizationJobs."""
    from plimsoll.api.crd import KINDS, as_yaml, definition
    from plimsoll.api.errors import SpecError
    from plimsoll.api.reference import reference as describe

    wanted = [one for one in KINDS if kind in (None, one.name)]
    if not wanted:
        names = ", ".join(one.name for one in KINDS)
        raise SpecError("is no kind of ours", field="--kind", value=kind, fix=f"Known are {names}")
    found = [definition(one) for one in wanted]
    typer.echo("\n".join(map(describe, found)) if reference else "---\n".join(map(as_yaml, found)), nl=False)
