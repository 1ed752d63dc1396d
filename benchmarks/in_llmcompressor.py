"""llm-compressor as contestant: AWQ of a Hugging Face folder on given token ids, with its own defaults.

Arguments: model folder, token ids (.npy int64 [S, L]), group size, threads, output folder, result file. Run in a
process of its own, by the Python that has llmcompressor.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model: Path, tokens: Path, group: int, threads: int, out: Path) -> dict[str, float]:
    torch.set_num_threads(threads)
    if not torch.accelerator.is_available():
        # It pins memory for a device; where there is none, torch raises.
        torch.Tensor.pin_memory = lambda self, *unused: self  # type: ignore[method-assign]
    began = time.perf_counter()
    windows = np.load(tokens)
    data = Dataset.from_dict({"input_ids": windows.tolist(), "attention_mask": np.ones_like(windows).tolist()})
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    rounding = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    oneshot(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="auto"), tokenizer=AutoTokenizer.from_pretrained(model),
        dataset=data, recipe=[AWQModifier(), rounding], max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows), shuffle_calibration_samples=False, output_dir=str(out),
    )  # fmt: skip
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.perf_counter() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }  # fmt: skip


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    Path(sys.argv[6]).write_text(json.dumps(found))
