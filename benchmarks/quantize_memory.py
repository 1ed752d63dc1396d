"""What quantizing takes in memory, time and disk, layer by layer, on a random Llama-shaped checkpoint.

    python -m benchmarks.quantize_memory [--layers 32] [--samples 8] [--length 512] [--mode both] [--threads 2] ...

Makes the checkpoint (2,048 wide and 1.6 B parameters as it stands) in a folder of its own, then `plimsoll quantize`
quantizes it in a fresh process, with the hidden states in memory and with memory for them lacking. After each layer it
prints the seconds of that layer and the most that its processes were resident with, beside one layer in float32 + a
micro-batch + the hidden states that memory holds: with what a process starts with, and above it. Exits 1 if one lies
above its prediction. Options that it does not know are for `plimsoll quantize`, as --no-search-scale.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from plimsoll.api.facts import facts_from_config
from plimsoll.api.job_budget import JobLoad, batch_bytes, job_needs, layer_bytes
from plimsoll.api.job_progress import JobProgress
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import ModelFacts
from plimsoll.checkpoint.safetensors_writer import write_shards

MIB = 1 << 20
#: What a process starts with.
BASE = """
import plimsoll.cli.quantize, plimsoll.quantjob.job
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def make_checkpoint(folder: Path, shape: dict[str, int]) -> ModelFacts:
    """In bfloat16, with a tokenizer of one token a byte."""
    config: dict[str, Any] = {
        **shape, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "hidden_act": "silu", "eos_token_id": 2, "bos_token_id": 1,
    }  # fmt: skip
    shapes = expected_tensors(facts := facts_from_config(config))
    draw = np.random.default_rng(0)

    def pieces(name: str) -> Iterator[npt.NDArray[np.float32]]:
        rows, *columns = shapes[name]
        step = max(1, 4 * MIB // math.prod(columns))
        for start in range(0, rows, step):
            size = (min(step, rows - start), *columns)
            yield 0.02 * draw.standard_normal(size, np.float32) if columns else np.ones(size, np.float32)

    folder.mkdir()
    write_shards(folder, shapes, "BF16", 512 * MIB, pieces, lambda count: None)
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder)
    return facts


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def quantize(source: Path, facts: ModelFacts, load: JobLoad, asked: argparse.Namespace, more: list[str],
             in_memory: bool) -> bool:  # fmt: skip
    """One run, told layer by layer. Returns whether its memory stayed below the prediction."""
    states = 4 * load.samples * load.length * facts.hidden_size
    needs = job_needs(facts, load)
    predicted = needs.walk + (states if in_memory else 0)
    summed = layer_bytes(facts) + batch_bytes(facts, load) + (states if in_memory else 0)
    base = int(subprocess.run([sys.executable, "-c", BASE], check=True, capture_output=True, text=True).stdout)
    print(
        f"hidden states {'in memory' if in_memory else 'on disk alone'}: one layer in float32 "
        f"{layer_bytes(facts) / MIB:.0f} MiB + a batch of {load.batch} {batch_bytes(facts, load) / MIB:.0f} MiB"
        + (f" + hidden states {states / MIB:.0f} MiB" if in_memory else "")
        + f" = {summed / MIB:.0f} MiB; a process starts with {base / MIB:.0f} MiB; predicted {predicted / MIB:.0f} MiB"
    )
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="plimsoll-quantized-") as scratch:
        out = Path(scratch) / "out"
        command = [
            sys.executable, "-m", "plimsoll.cli.main", "quantize", str(source), "--work-dir", str(out),
            "--method", load.method, "--calib-dataset", str(source.parent / "text.txt"),
            "--calib-samples", str(asked.samples), "--calib-seqlen", str(load.length),
            "--batch-size", str(load.batch), "--eval-samples", "0", "--threads", str(asked.threads),
            # Half of the hidden states is too little for them.
            "--memory", str(needs.walk + (states if in_memory else states // 2)), *more,
        ]  # fmt: skip
        if load.workers > 1:
            command += ["--workers", str(load.workers)]
        if load.group_size:
            command += ["--w-group-size", str(load.group_size)]
        peak, last, began = 0, -1, (0.0, 0.0)
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as job:
            assert job.stderr is not None
            for line in job.stderr:
                if not line.startswith("quantizing"):
                    print(line, end="", file=sys.stderr)
                    continue
                try:
                    now = JobProgress.decode((out / ".partial" / "progress.json").read_bytes())
                    times = psutil.Process(job.pid).cpu_times()
                except (FileNotFoundError, psutil.NoSuchProcess):
                    # A job this small is over before its last line is read.
                    continue
                peak = now.peak_memory
                clock = time.monotonic(), times.user + times.system
                if now.layer > max(0, last):
                    _tell(now, clock[0] - began[0], clock[1] - began[1], summed, base, _bytes_in(out))
                last, began = now.layer, clock
        if job.returncode:
            sys.exit(f"quantizing failed with status {job.returncode}")
        print(f"whole: at most {peak / MIB:.0f} MiB, {peak / predicted:.3f} of the prediction; "
              f"output {_bytes_in(out) / MIB:.0f} MiB", flush=True)  # fmt: skip
    return peak <= predicted


def _tell(now: JobProgress, seconds: float, cpu: float, summed: int, base: int, disk: int) -> None:
    peak = now.peak_memory
    print(f"layer {now.layer} of {now.of}: {seconds:.1f} s, {cpu:.1f} s of CPU, at most {peak / MIB:.0f} MiB, "
          f"{peak / summed:.2f} of the sum, {(peak - base) / summed:.2f} above the start; "
          f"on disk {disk / MIB:.0f} MiB", flush=True)  # fmt: skip


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"hidden": 2048, "intermediate": 5632, "layers": 32, "heads": 32, "kv-heads": 4,
                        "vocab": 32000, "samples": 8, "length": 512, "batch": 4, "threads": 2,
                        "workers": 1}.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--mode", choices=("memory", "disk", "both"), default="both", help="where hidden states lie")
    parser.add_argument("--method", choices=("awq", "rtn", "int8"), default="awq")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the output are made")
    asked, more = parser.parse_known_args()
    shape = {"hidden_size": asked.hidden, "intermediate_size": asked.intermediate, "num_hidden_layers": asked.layers,
             "num_attention_heads": asked.heads, "num_key_value_heads": asked.kv_heads,
             "vocab_size": asked.vocab}  # fmt: skip
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="plimsoll-random-") as scratch:
        source = Path(scratch) / "model"
        facts = make_checkpoint(source, shape)
        count = sum(math.prod(size) for size in expected_tensors(facts).values())
        print(f"{count / 1e9:.2f} B parameters, {_bytes_in(source) / MIB:.0f} MiB, in {scratch}", flush=True)
        letters = np.random.default_rng(1).integers(97, 123, (asked.samples + 1) * asked.length, np.uint8)
        letters[::60] = ord("\n")
        (source.parent / "text.txt").write_bytes(letters.tobytes())
        eight = asked.method == "int8"
        load = JobLoad(asked.method, 8 if eight else 4, 0 if eight else 128,
                       asked.samples if asked.method == "awq" else 0, asked.length, asked.batch,
                       workers=asked.workers)  # fmt: skip
        modes = {"memory": [True], "disk": [False], "both": [True, False]}[asked.mode if load.samples else "disk"]
        passed = [quantize(source, facts, load, asked, more, mode) for mode in modes]
        return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
