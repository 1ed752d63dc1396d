"""OpenVINO GenAI as contestant: paged cache and continuous batching, no HTTP. It reads the GGUF itself.

Runs in an interpreter that has `openvino-genai` and nothing of ours, hence the plain JSON.
Arguments: model, workload, threads, output.
"""

import json
import sys
import time

import numpy
import openvino
import openvino_genai


def surprise(model, windows, threads):
    """Nats of each token after a window's first, by the pipeline that the other figures are of."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.logprobs = 1, 1
    config.echo, config.do_sample = True, False
    found = []
    for number, window in enumerate(windows):
        ids = openvino.Tensor(numpy.array([window], dtype=numpy.int64))
        handle = pipeline.add_request(number, ids, config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        # The first token is given none, the last one is generated.
        found += [-log for log in handle.read_all()[0].generated_log_probs[1 : len(window)]]
    return found


def main(model, workload, threads):
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_seqs = workload["streams"]
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.LLMPipeline(model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads)
    tokenizer = pipeline.get_tokenizer()

    def generate(prompts, tokens):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        start = time.perf_counter()
        answer = pipeline.generate(prompts, config)
        seconds = time.perf_counter() - start
        made = answer.perf_metrics.get_num_generated_tokens()
        assert made == tokens * len(prompts), (made, tokens, len(prompts))
        return seconds, answer.perf_metrics

    def count(prompt):
        return int(tokenizer.encode(prompt).input_ids.shape[1])

    output, result = workload["output_tokens"], {"first_token": {}, "prompt_tokens": {}}
    generate(workload["warmup"], 8)
    alone = [generate([prompt], output) for prompt in workload["one_stream"]]
    result["one_stream"] = [output / seconds for seconds, _ in alone]
    result["one_stream_decode"] = [1000 / metrics.get_tpot().mean for _, metrics in alone]
    result["prompt_tokens"]["short"] = count(workload["one_stream"][0])
    for size, prompts in workload["long"].items():
        result["first_token"][size] = [generate([prompt], 1)[0] for prompt in prompts]
        result["prompt_tokens"][size] = count(prompts[0])
    batches = [generate(prompts, output)[0] for prompts in workload["four"]]
    result["four"] = [len(workload["four"][0]) * output / seconds for seconds in batches]
    batches = [generate(prompts, output)[0] for prompts in workload["sixteen"]]
    result["sixteen"] = [workload["streams"] * output / seconds for seconds in batches]
    seconds, _ = generate(workload["sustained"], output)
    result["sustained"] = [len(workload["sustained"]) * output / seconds]
    result["version"] = openvino_genai.__version__
    result["surprise"] = surprise(model, workload["windows"], threads)
    return result


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        asked = json.load(file)
    found = main(sys.argv[1], asked, int(sys.argv[3]))
    with open(sys.argv[4], "w") as file:
        json.dump(found, file)
