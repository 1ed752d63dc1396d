"""`plimsoll serve MODEL`: one checkpoint behind an OpenAI endpoint, with LMDeploy's option names."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from plimsoll.api.budget import RUNS
from plimsoll.api.choice import check_choice
from plimsoll.api.device import DeviceKind
from plimsoll.api.errors import SpecError
from plimsoll.api.load import UNTESTED, Fields, refuse_unrun
from plimsoll.api.parsers import AUTO, REASONING_PARSERS, TOOL_PARSERS, reasoning_parser_name, tool_parser_name
from plimsoll.api.precision import ActivationPrecision, CachePrecision
from plimsoll.api.quantity import byte_option
from plimsoll.api.shard import MOST_RANKS
from plimsoll.cli.cache_size import DEFAULT_SHARE, cache_size
from plimsoll.cli.host_memory import host_bytes
from plimsoll.cli.machines import MASTER_PORT, follow, leader_of, membership_of, refuse_headless_leader
from plimsoll.cli.speculative import guessing

if TYPE_CHECKING:
    from plimsoll.checkpoint.checkpoint import Checkpoint

#: What LMDeploy's `--quant-policy` means.
POLICIES: Mapping[int, CachePrecision] = {0: "float", 4: "int4", 8: "int8"}
FORMATS = ("hf", "awq", "gptq", "compressed-tensors", "gguf")


def serve(
    model: Annotated[str, typer.Argument(help="A folder, a .gguf file, file://PATH or hf://ORG/NAME@REVISION.")],
    server_name: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    server_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    model_name: Annotated[str | None, typer.Option(help="What clients call it. Default: the model's own name.")] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            help="A FILE with one key a line. (LMDeploy takes the keys themselves; a command line is public.)"
        ),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-origins",
            "--allow-origins",
            help="Origin whose web pages may use the server, as https://app.example. Repeat it, separate several by "
            "commas, or give * for all. Default: pages of this machine, and all where there are keys.",
        ),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that a server without keys answers to, as llm.example; repeat it, or * for all. "
            "Default: localhost alone where it listens on loopback, else all."
        ),
    ] = None,
    cache_max_entry_count: Annotated[
        float | None,
        typer.Option(
            help=f"Share of the memory that is free after the weights to use as KV cache. Default: {DEFAULT_SHARE}."
        ),
    ] = None,
    kv_cache_bytes: Annotated[
        str | None, typer.Option(help="The KV cache's size itself, as 2Gi or 512Mi, instead of a share.")
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(
            help="Host memory for a second tier of cache blocks, as 8Gi, of each rank: what leaves the cache is copied "
            "there, and back when it is needed. Default: none."
        ),
    ] = None,
    swap_space: Annotated[
        float | None, typer.Option(min=0.0, max=float(1 << 20), help="--host-memory in GiB, as vLLM has it.")
    ] = None,
    kv_offloading_size: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=float(1 << 20),
            help="The same in GiB, of all ranks together, as vLLM has it: --host-memory is this, divided by the ranks.",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="The line, as 8Gi. Default: what this machine or container has.")
    ] = None,
    session_len: Annotated[
        int | None, typer.Option(min=1, max=(1 << 31) - 1, help="Longest prompt and answer together, in tokens.")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, max=1 << 16, help="Requests that run at once.")] = 64,
    max_prefill_token_num: Annotated[
        int | None,
        typer.Option(min=16, max=1 << 20, help="Tokens one step may compute. Default: 8192 on a GPU, 2048 on a CPU."),
    ] = None,
    cache_block_seq_len: Annotated[
        int, typer.Option(help="Tokens in a block of the cache: 16, 32, 64, 128 or 256.")
    ] = 64,
    enable_prefix_caching: Annotated[bool, typer.Option(help="Share the cache of equal beginnings.")] = True,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16, float32, w8a16 or w4a16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    tp: Annotated[
        str,
        typer.Option(
            "--tp",
            "--tensor-parallel-size",
            metavar="N|auto",
            help="Tensor parallel size: ranks that hold the model together. More than 1 runs on CPUs only. auto takes "
            "the fewest that hold it, where --memory is given, and 1 else.",
        ),
    ] = "1",
    nnodes: Annotated[
        int,
        typer.Option(
            "--nnodes",
            "-n",
            min=1,
            max=MOST_RANKS,
            help="Machines that the ranks are spread over; each runs this command.",
        ),
    ] = 1,
    node_rank: Annotated[
        int,
        typer.Option(
            "--node-rank", "-r", min=0, help="This machine's number among them. 0 leads, and serves the endpoint."
        ),
    ] = 0,
    dist_init_addr: Annotated[
        str | None, typer.Option("--dist-init-addr", help="HOST:PORT on which machine 0 listens for the others.")
    ] = None,
    master_addr: Annotated[
        str | None, typer.Option(help="HOST of machine 0, in place of --dist-init-addr; as vLLM has it.")
    ] = None,
    master_port: Annotated[
        int | None, typer.Option(help=f"PORT beside --master-addr. Default: {MASTER_PORT}, as in vLLM.")
    ] = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="This machine serves no endpoint: so do all but machine 0.")
    ] = False,
    group_key_file: Annotated[
        Path | None,
        typer.Option(help="A FILE with the secret that the machines share: at least 64 hexadecimal digits."),
    ] = None,
    quant_policy: Annotated[
        int | None,
        typer.Option(help="KV cache: 0 floats, 8 int8, 4 int4. Default: floats, or int8 where those hold too little."),
    ] = None,
    model_format: Annotated[
        str | None, typer.Option(help="hf, awq, gptq, compressed-tensors or gguf; read from the files by default.")
    ] = None,
    rope_scaling_factor: Annotated[
        float,
        typer.Option(
            min=0.0, max=1024.0, help="Dynamic NTK scaling beyond the trained length; 0 is the checkpoint's own."
        ),
    ] = 0.0,
    chat_template: Annotated[
        Path | None, typer.Option(help="A Jinja file, or the name of one of the checkpoint's templates.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: the container's CPU limit.")
    ] = None,
    torch_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows of a step from which torch multiplies in bfloat16: perhaps quicker prompts, and answers that "
            "depend on load. Default: never.",
        ),
    ] = None,
    activation_precision: Annotated[
        str,
        typer.Option(
            help="What activations become where they meet weights of 4 or 8 bits, on a CPU: int8 (quicker prompts, "
            "answers change a little), bfloat16, or auto: int8 with AVX2 or SDOT and without AMX, else bfloat16."
        ),
    ] = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Refuse to start where answers might depend on load.")
    ] = False,
    speculative_tokens: Annotated[
        int, typer.Option(min=0, max=16, help="Tokens that a step guesses; answers stay the same. 0: none.")
    ] = 0,
    draft_model: Annotated[
        str | None,
        typer.Option(help="A smaller model that guesses them, as MODEL. Default: the text itself."),
    ] = None,
    speculative_config: Annotated[
        str | None, typer.Option(help='Both as vLLM has them: {"model": "PATH", "num_speculative_tokens": 4}.')
    ] = None,
    max_body_bytes: Annotated[
        str | None,
        typer.Option(help="The most that a request's body may have, as 4Mi. Default: 1Mi to 16Mi, by the context."),
    ] = None,
    scheduling_policy: Annotated[
        str,
        typer.Option(
            help="fcfs: order of arrival. priority: order of the requests' field priority, lower numbers first; any "
            "client may then go before the others."
        ),
    ] = "fcfs",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse requests for more tokens than the context leaves.")
    ] = False,
    request_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds a request may take.")] = 600.0,
    restart_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds that requests wait for an engine that is being started again.")
    ] = 30.0,
    hang_timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds of silence after which the engine is killed and started again.")
    ] = 20.0,
    tool_call_parser: Annotated[
        str,
        typer.Option(
            "--tool-call-parser",
            help=f"How the model writes calls of functions: auto, none, {', '.join(TOOL_PARSERS)}, or what vLLM, "
            "SGLang and LMDeploy call these.",
        ),
    ] = AUTO,
    reasoning_parser: Annotated[
        str,
        typer.Option(
            "--reasoning-parser",
            help=f"How the model marks its thoughts: auto, none, {', '.join(REASONING_PARSERS)}, or what vLLM, SGLang "
            "and LMDeploy call these.",
        ),
    ] = AUTO,
    drain_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds that running requests get on SIGTERM.")
    ] = 120.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve a checkpoint as an OpenAI endpoint."""
    tensor = _tensor(tp)
    host = host_bytes(host_memory, swap_space, kv_offloading_size, tensor)
    _check_options(dtype, device, tensor, model_format)
    if quant_policy is not None:
        check_choice(quant_policy, tuple(POLICIES), "--quant-policy")
    guesses, draft = guessing(speculative_tokens, draft_model, speculative_config)
    check_choice(scheduling_policy, ("fcfs", "priority"), "--scheduling-policy")
    check_choice(activation_precision, get_args(ActivationPrecision), "--activation-precision")
    if headless:
        refuse_headless_leader(node_rank)
    leader = leader_of(dist_init_addr, master_addr, master_port)
    membership = membership_of(tensor, nnodes, node_rank, leader, group_key_file)
    if membership is not None and membership.ordinal > 0:
        # Machine 0 runs all of it.
        draft = None
    kv_ratio, cache_bytes = cache_size(cache_max_entry_count, kv_cache_bytes)
    if 0 < rope_scaling_factor < 1:
        raise SpecError(
            "must be at least 1, or 0 for the checkpoint's own",
            field="--rope-scaling-factor",
            value=rope_scaling_factor,
        )
    if api_keys is not None and not Path(api_keys).is_file():
        # What was given may be a key: it is not repeated.
        raise SpecError(
            "must be the path of a file with one key a line, and there is no such file", field="--api-keys",
            fix="Unlike LMDeploy's, this option never takes the keys themselves: every user of the machine sees them",
        )  # fmt: skip

    from plimsoll.checkpoint.open import open_checkpoint
    from plimsoll.cli import local
    from plimsoll.runtime.config import EngineConfig, ServerConfig
    from plimsoll.runtime.server import log
    from plimsoll.runtime.server.service import Service

    log.configure(log_level)
    screen = local.console()
    path = local.fetch(model, screen, "MODEL")
    checkpoint = open_checkpoint(path)
    found = _format(checkpoint)
    if model_format not in (None, found):
        raise SpecError(
            f"the checkpoint is {found}", field="--model-format", value=model_format, fix="Leave the option out"
        )
    engine = EngineConfig(
        model=str(path),
        precision=dtype,
        cache_precision="auto" if quant_policy is None else POLICIES[quant_policy],
        tensor=tensor,
        nodes=nnodes,
        device=device,
        memory=None if memory is None else byte_option(memory, "--memory"),
        kv_ratio=kv_ratio,
        kv_cache_bytes=cache_bytes,
        host_memory=host,
        block_size=cache_block_seq_len,
        prefix_caching=enable_prefix_caching,
        max_model_len=session_len,
        rope_type="dynamic" if rope_scaling_factor else None,
        rope_factor=rope_scaling_factor or None,
        max_batched_tokens=max_prefill_token_num,
        paced=True,
        max_running=max_batch_size,
        threads=threads,
        names="options",
        torch_rows=torch_rows,
        activation_precision=cast(ActivationPrecision, activation_precision),
        deterministic=deterministic,
        speculative_tokens=guesses,
        draft_model=None if draft is None else str(local.fetch(draft, screen, "--draft-model")),
        hang_timeout=hang_timeout,
    )
    server = ServerConfig(
        served_name=model_name or local.own_name(model, path),
        host=server_name,
        port=server_port,
        api_keys_file=api_keys,
        allowed_origins=origins(allowed_origins or ()),
        allowed_hosts=tuple(map(_host, allowed_hosts or ())),
        scheduling_policy=cast(Literal["fcfs", "priority"], scheduling_policy),
        strict=strict,
        max_body_bytes=None if max_body_bytes is None else _body_bytes(max_body_bytes),
        request_timeout=request_timeout,
        restart_timeout=restart_timeout,
        drain_timeout=drain_timeout,
        chat_template=None if chat_template is None else str(chat_template),
        tool_parser=tool_parser_name(tool_call_parser, "--tool-call-parser"),
        reasoning_parser=reasoning_parser_name(reasoning_parser, "--reasoning-parser"),
    )
    if membership is not None and membership.ordinal > 0:
        follow(engine, membership, checkpoint, drain_timeout)
    else:
        local.run([Service(engine, server, checkpoint, membership=membership)], screen)


def _tensor(value: str) -> int | Literal["auto"]:
    """Raises SpecError for what is no size of a group."""
    if value == "auto":
        return "auto"
    if not re.fullmatch(r"[0-9]{1,3}", value) or not 1 <= int(value) <= MOST_RANKS:
        raise SpecError(f"must be auto or a whole number from 1 to {MOST_RANKS}", field="--tp", value=value)
    return int(value)


def _check_options(dtype: str, device: str, tensor: int | str, model_format: str | None) -> None:
    check_choice(dtype, ("auto", *sorted(RUNS)), "--dtype")
    if model_format is not None:
        check_choice(model_format, FORMATS, "--model-format")
    fields = Fields(precision="--dtype", tensor="--tp")
    kind: DeviceKind | None = "cpu" if device == "cpu" else "cuda" if device.startswith("cuda") else None
    refuse_unrun(dtype, tensor, kind, fields, untested=os.environ.get(UNTESTED) == "1")


def _body_bytes(value: str) -> int:
    """Raises SpecError for a limit that lets nothing in, or more than a process may take to read it."""
    found = byte_option(value, "--max-body-bytes")
    if not 4096 <= found <= 64 << 20:
        raise SpecError("must be from 4Ki to 64Mi", field="--max-body-bytes", value=value, fix="Try 4Mi")
    return found


def origins(values: Sequence[str]) -> tuple[str, ...]:
    """One origin an option, several with commas between, or a JSON list as vLLM takes it. Raises SpecError."""
    found: list[str] = []
    for value in values:
        written = value.strip()
        given = re.fullmatch(r'\[\s*("[^"]*"\s*(?:,\s*"[^"]*"\s*)*)\]', written)
        parts = re.findall(r'"([^"]*)"', given[1]) if given else written.split(",")
        found += map(_origin, parts)
    return tuple(found)


def _origin(value: str) -> str:
    """An origin as browsers write it. Raises SpecError for anything more or less."""
    found = value.strip().removesuffix("/").lower()
    if found not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", found):
        raise SpecError(
            "must be *, or a scheme and a host, with a port where there is one", field="--allowed-origins", value=value,
            fix="Write https://app.example or http://localhost:3000",
        )  # fmt: skip
    return found


def _host(value: str) -> str:
    """A name or an address as a Host header has it, without a port. Raises SpecError for anything more or less."""
    found = value.strip().lower().removesuffix(".")
    if not re.fullmatch(r"\*|\[[0-9a-f:.]+\]|[a-z0-9_][a-z0-9_.-]*", found):
        raise SpecError(
            "must be *, a name or an address, without a scheme or a port", field="--allowed-hosts", value=value,
            fix="Write llm.example, 192.0.2.1 or [2001:db8::1]",
        )  # fmt: skip
    return found


def _format(checkpoint: "Checkpoint") -> str:
    """Of `FORMATS`: LMDeploy's words for how weights lie on disk."""
    quantization = checkpoint.facts.quantization
    if quantization is not None:
        return quantization.format
    return "gguf" if checkpoint.format == "gguf" else "hf"
