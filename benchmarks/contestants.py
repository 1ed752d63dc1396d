"""Who takes part, and why not, if not. Each runs in a process of its own while nothing else of ours runs."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.over_http import free_port, measure, measure_llama_server, server, surprise
from benchmarks.workload import Workload

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    model: Path
    workload: Workload
    threads: int
    activations: str = "auto"
    """Of ours: what rows become where they meet codes."""


@dataclass(frozen=True)
class Contestant:
    name: str
    title: str
    run: Callable[[Setting], dict[str, Any]]
    missing: str | None = None
    """Why it cannot take part; None when it can."""


def contestants(precisions: Sequence[str] = ("auto",)) -> list[Contestant]:
    """Ours once in each precision, under the plain name in the first, which is the one that ratios are of."""
    openvino, llama = os.environ.get("OPENVINO_PYTHON"), os.environ.get("LLAMA_SERVER")
    first, *others = precisions
    return [
        Contestant("server", _title("server", first), _own_server(first)),
        Contestant("llama", "llama-server", _llama, _unusable("LLAMA_SERVER", llama)),
        Contestant("library", _title("LLM.generate", first), _script("benchmarks.in_library", first)),
        *(Contestant(f"server-{p}", _title("server", p), _own_server(p)) for p in others),
        *(Contestant(f"library-{p}", _title("LLM.generate", p), _script("benchmarks.in_library", p)) for p in others),
        Contestant("openvino", "OpenVINO GenAI", _openvino, _unusable("OPENVINO_PYTHON", openvino)),
        Contestant("transformers", "transformers, bfloat16", _script("benchmarks.in_transformers", "bfloat16")),
        # Where a processor has no bfloat16 arithmetic, this is what its users would run.
        Contestant("transformers32", "transformers, float32", _script("benchmarks.in_transformers", "float32")),
    ]


def timed(contestant: Contestant, setting: Setting) -> dict[str, Any]:
    """Its measures, the seconds it took, and the share of a core that strangers took meanwhile."""
    start, busy, ours = time.monotonic(), _busy(), _ours()
    result = contestant.run(setting)
    seconds = time.monotonic() - start
    strangers = max(0.0, (_busy() - busy) - (_ours() - ours)) / seconds
    return result | {"seconds": seconds, "strangers": strangers}


def decode_step(setting: Setting) -> dict[str, Any]:
    """Where a decode step's time goes; not a contest, but measured as carefully."""
    return _process([sys.executable, "-m", "benchmarks.decode_step"], setting)


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _ours() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _unusable(variable: str, path: str | None) -> str | None:
    if not path:
        return f"{variable} is not set"
    return None if shutil.which(path) else f"{variable}={path} is not an executable file"


def _title(what: str, precision: str) -> str:
    return f"Plimsoll, {what}" + ("" if precision == "auto" else f", {precision}")


def _own_server(precision: str) -> Callable[[Setting], dict[str, Any]]:
    def run(setting: Setting) -> dict[str, Any]:
        port = free_port()
        command = [
            sys.executable, "-m", "plimsoll.cli.main", "serve", str(setting.model), "--dtype", precision,
            "--server-port", str(port), "--threads", str(setting.threads), "--kv-cache-bytes", "2Gi",
            "--activation-precision", setting.activations,
        ]  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        with server(command, url, "/ready", setting.threads):
            return measure(url, setting.workload) | {"surprise": surprise(url, setting.workload.windows)}

    return run


def _llama(setting: Setting) -> dict[str, Any]:
    return measure_llama_server(Path(os.environ["LLAMA_SERVER"]), setting.model, setting.workload, setting.threads)


def _openvino(setting: Setting) -> dict[str, Any]:
    return _process([os.environ["OPENVINO_PYTHON"], str(HERE / "in_openvino.py")], setting)


def _script(module: str, *more: str) -> Callable[[Setting], dict[str, Any]]:
    return lambda setting: _process([sys.executable, "-m", module], setting, *more, setting.activations)


def _process(command: list[str], setting: Setting, *more: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "workload.json", Path(folder) / "result.json"
        setting.workload.write(asked)
        arguments = [str(setting.model), str(asked), str(setting.threads), str(answer), *more]
        done = subprocess.run(
            [*command, *arguments],
            cwd=HERE.parent,
            env={**os.environ, "OMP_NUM_THREADS": str(setting.threads)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"ended with {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found
