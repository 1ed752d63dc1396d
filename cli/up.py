"""`plimsoll up -f FILE`: the manifests a cluster would take, as processes on this machine."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plimsoll.api.errors import DoesNotFitError, SpecError

if TYPE_CHECKING:
    from plimsoll.api.budget import Budget
    from plimsoll.api.deployment import ModelDeployment
    from plimsoll.api.model import ModelFacts


def up(
    file: Annotated[str, typer.Option("--file", "-f", help="Manifests, in one YAML file; - reads them from stdin.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The first deployment's; the next ones take the ports after it.")
    ] = 8000,
    ask: Annotated[str | None, typer.Option(help="Ask this once, print the answer, and stop.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Chat in this terminal; leaving it stops everything.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
) -> None:
    """Run ModelDeployments on this machine: budget first, then load, serve, and drain on Ctrl-C.

    QuantizationJobs of the same file come before them; a file of jobs alone is done when they are.
    """
    if ask is not None and chat:
        raise SpecError("cannot be combined with --chat", field="--ask", value=ask, fix="Leave one of them out")

    from plimsoll.api.deployment import ModelDeployment
    from plimsoll.api.draft import FIELD as DRAFT
    from plimsoll.api.manifest import parse_objects
    from plimsoll.api.one_machine import of_a_cluster, on_one_machine, refuse_on_one_machine
    from plimsoll.api.quantization_job import QuantizationJob
    from plimsoll.api.source import FIELD
    from plimsoll.checkpoint.open import open_checkpoint
    from plimsoll.cli import conversation, local
    from plimsoll.cli.local_jobs import run_jobs, serving
    from plimsoll.cli.manifest_file import read_manifest
    from plimsoll.runtime.config import from_deployment
    from plimsoll.runtime.server import log
    from plimsoll.runtime.server.service import Service

    log.configure(log_level)
    screen = local.console()
    objects = parse_objects(*read_manifest(file))
    jobs = [one for one in objects if isinstance(one, QuantizationJob)]
    named = {job.metadata.name: job.spec.output for job in jobs}
    deployments = serving((one for one in objects if isinstance(one, ModelDeployment)), named)
    for deployment in deployments:
        refuse_on_one_machine(deployment.spec)
        if unused := of_a_cluster(deployment.spec):
            words = f"{deployment.metadata.name}: only a cluster obeys {', '.join(unused)}"
            screen.print(words, style="dim", highlight=False, soft_wrap=True)
        if (nodes := deployment.spec.parallelism.nodes) > 1:
            words = f"{deployment.metadata.name}: on one machine all ranks are processes here, not in {nodes} pods"
            screen.print(words, style="dim", highlight=False, soft_wrap=True)
    deployments = [on_one_machine(deployment) for deployment in deployments]
    run_jobs(jobs)
    if not deployments:
        return

    prepared, budgets = [], []
    for number, deployment in enumerate(deployments):
        path = local.fetch(deployment.spec.model.source, screen, FIELD)
        checkpoint = open_checkpoint(path)
        guesses = deployment.spec.serving.draft
        draft = None if guesses is None else local.fetch(guesses.source, screen, f"{DRAFT}.source")
        configs = from_deployment(deployment, path, draft=draft, host=host, port=port and port + number)
        beside = None if draft is None else open_checkpoint(draft).facts
        budgets.append((deployment, _budget(deployment, checkpoint.facts, beside)))
        prepared.append((*configs, checkpoint))
    _refuse_together(budgets)
    services = [Service(engine, server, checkpoint) for engine, server, checkpoint in prepared]

    def talk() -> None:
        keys = deployments[0].spec.serving.api_keys_file
        key = conversation.first_key(Path(keys), "spec.serving.apiKeysFile") if keys else None
        with closing(conversation.Endpoint(services[0].url, services[0].config.served_name, key)) as endpoint:
            if ask is None:
                conversation.chat(endpoint, conversation.CALM, None, screen)
            else:
                screen.print(f"> {ask}", style="bold", highlight=False)
                conversation.ask(endpoint, ask, {"temperature": 0, "max_tokens": 256})

    local.run(services, screen, talk if chat or ask is not None else None)


def _budget(deployment: "ModelDeployment", facts: "ModelFacts", draft: "ModelFacts | None" = None) -> "Budget | None":
    """Refuses with the sum before any process starts, as `plan` does.

    A GPU without `accelerator.memory` is left to the engine, which asks the driver: None.
    """
    from plimsoll.api.device import DeviceKind
    from plimsoll.cli.sizing import place_of, sized

    accelerator = deployment.spec.accelerator
    kind: DeviceKind = "cpu" if accelerator.resource == "cpu" else "cuda"
    if accelerator.memory is None and kind == "cuda":
        return None
    return sized(deployment.spec, facts, place_of(deployment.spec, kind, accelerator.memory), draft)


def _refuse_together(budgets: "list[tuple[ModelDeployment, Budget | None]]") -> None:
    """Each deployment may fit where all of them do not.

    Raises DoesNotFitError with the sum.
    """
    import psutil

    from plimsoll.api.quantity import format_bytes

    on_cpu = [
        (deployment.metadata.name, found.ranks_in_use)
        for deployment, found in budgets
        if found is not None and deployment.spec.accelerator.resource == "cpu"
    ]
    needed, free = sum(size for _, size in on_cpu), psutil.virtual_memory().available
    if needed > free:
        parts = " + ".join(f"{format_bytes(size)} {name}" for name, size in on_cpu)
        raise DoesNotFitError(
            f"needs {parts} = {format_bytes(needed)}, and {format_bytes(free)} of this machine's memory are free",
            field="spec.accelerator.memory",
            fix=f"Free {format_bytes(needed - free)}, or run fewer deployments at once",
        )  # fmt: skip
