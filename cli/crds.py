"""`plimsoll crds`: the CustomResourceDefinitions of this version, for `kubectl apply --server-side -f -`."""

from typing import Annotated

import typer


def crds(
    reference: Annotated[bool, typer.Option("--reference", help="Their fields as Markdown instead.")] = False,
) -> None:
    """Print what a cluster must know of ModelDeployments."""
    from plimsoll.api.crd import as_yaml, model_deployment_crd
    from plimsoll.api.reference import reference as describe

    crd = model_deployment_crd()
    typer.echo(describe(crd) if reference else as_yaml(crd), nl=False)
