"""`plimsoll crds`: the CustomResourceDefinitions of this version, for `kubectl apply --server-side -f -`."""

from typing import Annotated

import typer


def crds(
    reference: Annotated[bool, typer.Option("--reference", help="Their fields as Markdown instead.")] = False,
    kind: Annotated[str | None, typer.Option(help="Only this one: ModelDeployment or QuantizationJob.")] = None,
) -> None:
    """Print what a cluster must know of ModelDeployments and QuantizationJobs."""
    from plimsoll.api.choice import check_choice
    from plimsoll.api.crd import KINDS, as_yaml, definition
    from plimsoll.api.reference import reference as describe

    wanted = [one for one in KINDS if kind in (None, one.name)]
    if kind is not None:
        check_choice(kind, [one.name for one in KINDS], "--kind")
    found = [definition(one) for one in wanted]
    typer.echo("\n".join(map(describe, found)) if reference else "---\n".join(map(as_yaml, found)), nl=False)
