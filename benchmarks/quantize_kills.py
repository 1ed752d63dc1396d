"""Kill a real `plimsoll quantize` at random instants, go on, and compare the output with an undisturbed run's.

    python -m benchmarks.quantize_kills MODEL TEXT [--kills 20] [--group 64] [--samples 4] [--length 128]

MODEL is a folder or a GGUF file, TEXT a file or folder of text. Prints each kill with where it struck, and exits 1 if a
SHA-256 or the report differs.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from plimsoll.checkpoint.quantized.manifest import read_manifest, verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="plimsoll-kills-") as scratch:
        plain, struck = Path(scratch) / "plain", Path(scratch) / "struck"

        def command(out: Path) -> list[str]:
            return [
                sys.executable, "-m", "plimsoll.cli.main", "quantize", asked.model, "--work-dir", str(out),
                "--calib-dataset", asked.text, "--w-group-size", str(asked.group), "--calib-samples",
                str(asked.samples), "--calib-seqlen", str(asked.length), "--eval-samples", "2",
            ]  # fmt: skip

        began = time.monotonic()
        subprocess.run(command(plain), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        whole = time.monotonic() - began
        print(f"undisturbed: {whole:.0f} s", flush=True)
        kills, outputs, same = 0, 0, True
        while kills < asked.kills or read_manifest(struck) is None:
            process = subprocess.Popen(command(struck), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(draw.uniform(0.2, 1.0) * whole if kills < asked.kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
                print(f"kill {kills}: {_reached(struck)}", flush=True)
            if process.wait() not in (0, -9):
                raise SystemExit(f"a run that went on failed with {process.returncode}")
            if read_manifest(struck) is not None:
                outputs += 1
                same = same and _found(plain) == _found(struck)
                if kills < asked.kills:
                    shutil.rmtree(struck)
    words = "the same to the bit" if same else "NOT THE SAME"
    print(f"{kills} kills, {outputs} outputs, files and figures {words} as the undisturbed one's")
    raise SystemExit(not same)


def _reached(out: Path) -> str:
    partial = out / ".partial"
    try:
        words = f"{json.loads((partial / 'state.json').read_bytes())['layers']} layers were done"
    except OSError:
        return "nothing was done yet"
    try:
        measured = json.loads((partial / "evaluation" / "state.json").read_bytes())["layers"]
    except OSError:
        return words
    windows = len(list((partial / "evaluation").glob("window-*.npy")))
    return f"{words}, {' and '.join(map(str, measured))} measured, {windows} windows"


def _found(out: Path) -> tuple[list[tuple[str, str]], bytes]:
    """Name and SHA-256 of each file, and the figures."""
    return [(file.name, file.sha256) for file in verify(out).files], (out / "report.json").read_bytes()


if __name__ == "__main__":
    main()
