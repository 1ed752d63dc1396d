"""Our library as contestant: `LLM.generate` in this process, no HTTP, as OpenVINO GenAI is measured.

Arguments: model, workload, threads, output, precision, activation precision. Run in a process of its own.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload
from plimsoll import LLM, SamplingParams


def main(model: Path, workload: Workload, threads: int, precision: str, activations: str) -> dict[str, Any]:
    llm = LLM(
        model, threads=threads, precision=precision, kv_cache_bytes=2 << 30, prefix_caching=False,
        max_running=workload.streams, activation_precision=activations,
    )  # fmt: skip

    def generate(prompts: list[str], tokens: int) -> tuple[float, int]:
        """Seconds, and prompt tokens of the first prompt."""
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        answers = llm.generate(prompts, params)
        seconds = time.perf_counter() - start
        assert all(len(answer.outputs[0].token_ids) == tokens for answer in answers)
        return seconds, len(answers[0].prompt_token_ids)

    ready = llm.engine.ready
    result: dict[str, Any] = {"first_token": {}, "prompt_tokens": {}}
    result |= {"kernels": ready.kernels, "precision": ready.precision}
    generate(workload.warmup, 8)
    alone = [generate([prompt], workload.output_tokens) for prompt in workload.one_stream]
    result["one_stream"] = [workload.output_tokens / seconds for seconds, _ in alone]
    result["prompt_tokens"]["short"] = alone[0][1]
    for size, prompts in workload.long.items():
        firsts = [generate([prompt], 1) for prompt in prompts]
        result["first_token"][size] = [seconds for seconds, _ in firsts]
        result["prompt_tokens"][size] = firsts[0][1]
    batches = [generate(prompts, workload.output_tokens)[0] for prompts in workload.four]
    result["four"] = [len(workload.four[0]) * workload.output_tokens / seconds for seconds in batches]
    batches = [generate(prompts, workload.output_tokens)[0] for prompts in workload.sixteen]
    result["sixteen"] = [workload.streams * workload.output_tokens / seconds for seconds in batches]
    seconds, _ = generate(workload.sustained, workload.output_tokens)
    result["sustained"] = [len(workload.sustained) * workload.output_tokens / seconds]
    # Nats of each token after a window's first.
    known = llm.logprobs(workload.windows) if workload.windows else []
    result["surprise"] = [-token.chosen.logprob for window in known for token in window if token is not None]
    return result


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), Workload.read(Path(sys.argv[2])), int(sys.argv[3]), *sys.argv[5:7])
    Path(sys.argv[4]).write_text(json.dumps(found))
