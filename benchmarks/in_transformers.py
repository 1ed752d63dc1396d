"""transformers as contestant: the same GGUF, dequantized by transformers to bfloat16 or float32.

Arguments: model, workload, threads, output, dtype. Run in a process of its own.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from benchmarks.workload import Workload


def main(model_path: Path, workload: Workload, threads: int, dtype: str) -> dict[str, Any]:
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_path.parent, gguf_file=model_path.name)
    model = AutoModelForCausalLM.from_pretrained(
        model_path.parent, gguf_file=model_path.name, dtype=getattr(torch, dtype)
    ).eval()
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def generate(prompts: list[str], tokens: int) -> tuple[float, int]:
        """Seconds, tokenising included, and prompt tokens of the first prompt."""
        start = time.perf_counter()
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        answer = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
            min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        assert answer.shape[1] - inputs["input_ids"].shape[1] == tokens
        return seconds, int(inputs["attention_mask"][0].sum())

    result: dict[str, Any] = {"first_token": {}, "prompt_tokens": {}, "precision": dtype, "surprise": []}
    generate(workload.warmup[:1], 8)
    generate(workload.warmup, 4)
    alone = [generate([prompt], workload.output_tokens) for prompt in workload.one_stream]
    result["one_stream"] = [workload.output_tokens / seconds for seconds, _ in alone]
    result["prompt_tokens"]["short"] = alone[0][1]
    # The slowest by far on some processors: fewer repeats than the others get.
    for size, prompts in workload.long.items():
        firsts = [generate([prompt], 1) for prompt in prompts[:2]]
        result["first_token"][size] = [seconds for seconds, _ in firsts]
        result["prompt_tokens"][size] = firsts[0][1]
    batches = [generate(prompts, workload.output_tokens)[0] for prompts in workload.four[:1]]
    result["four"] = [len(workload.four[0]) * workload.output_tokens / seconds for seconds in batches]
    batches = [generate(prompts, workload.output_tokens)[0] for prompts in workload.sixteen[:1]]
    result["sixteen"] = [workload.streams * workload.output_tokens / seconds for seconds in batches]
    with torch.inference_mode():
        for window in workload.windows:
            ids = torch.tensor([window])
            log = model(ids).logits[0, :-1].float().log_softmax(-1)
            result["surprise"] += (-log.gather(1, ids[0, 1:, None])[:, 0]).tolist()
    return result


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), Workload.read(Path(sys.argv[2])), int(sys.argv[3]), sys.argv[5])
    Path(sys.argv[4]).write_text(json.dumps(found))
