"""/metrics under vLLM's names with our prefix, so that its dashboards need one replacement.

What the engine counts is read from its last step when somebody scrapes; what the server sees is observed as it happens.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from plimsoll.runtime.messages import EngineReady, EngineStats, RankReady, RequestTimes

PREFIX = "plimsoll:"
CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0)
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SAMPLES = (1, 2, 5, 10, 20)

#: name, buckets, meaning
HISTOGRAMS: tuple[tuple[str, Sequence[float], str], ...] = (
    ("time_to_first_token_seconds", FIRST, "From a request's arrival to its first token."),
    ("inter_token_latency_seconds", BETWEEN, "Between one token of a request and the next."),
    ("request_time_per_output_token_seconds", BETWEEN, "A request's mean time per token after its first."),
    ("e2e_request_latency_seconds", SECONDS, "From a request's arrival to its last token."),
    ("request_queue_time_seconds", SECONDS, "From arrival until a request is first scheduled."),
    ("request_inference_time_seconds", SECONDS, "From first scheduled to the last token."),
    ("request_prefill_time_seconds", SECONDS, "From first scheduled to the first token."),
    ("request_decode_time_seconds", SECONDS, "From the first token to the last."),
    ("request_prompt_tokens", TOKENS, "Tokens of a request's prompt."),
    ("request_generation_tokens", TOKENS, "Tokens a request generated."),
    ("request_params_n", SAMPLES, "Answers to a prompt that a request asked for."),
    ("request_params_max_tokens", TOKENS, "Tokens that a request allowed for an answer."),
    ("iteration_tokens_total", STEP, "Tokens generated in one engine step, and prompt tokens computed for first ones."),
)


class Histogram:
    """Counts in buckets. prometheus-client's own takes two locks an observation, and there is one a token here;
    only the event loop touches this one."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it) of each bucket, in Prometheus' form."""
        seen, found = 0, []
        for bound, count in zip((*map(float, self.bounds), float("inf")), self.counts, strict=True):
            seen += count
            found.append(("+Inf" if bound == float("inf") else repr(bound), float(seen)))
        return found


class Metrics:
    """Everything /metrics shows for one served model.

    Args:
        model: the served name, the `model_name` label of every series.
        stats: the engine's last word on itself; counters in it start again when the engine does.
        info: what the engine said when it became ready, None until then.
        restarts: how many times the engine died and was started again.
    """

    def __init__(
        self,
        model: str,
        stats: Callable[[], EngineStats],
        info: Callable[[], EngineReady | None],
        restarts: Callable[[], int],
    ) -> None:
        self.model, self.stats, self.info, self.restarts = model, stats, info, restarts
        self.histograms = {name: Histogram(buckets) for name, buckets, _ in HISTOGRAMS}
        self.time_to_first_token = self.histograms["time_to_first_token_seconds"]
        self.inter_token_latency = self.histograms["inter_token_latency_seconds"]
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._success = Counter(
            f"{PREFIX}request_success",
            "Requests that ended, by why.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._rejected = Counter(
            f"{PREFIX}admission_rejections",
            "Requests refused, by why.",
            ["model_name", "reason"],
            registry=self.registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(model, reason)

    def rejected(self, reason: str) -> None:
        """Count a request that was refused for `reason`."""
        self._rejected.labels(self.model, reason).inc()

    def step(self, stats: EngineStats, finished: list[RequestTimes]) -> None:
        """What one engine step reports."""
        if stats.last_step_counted:
            self.histograms["iteration_tokens_total"].observe(stats.last_step_counted)
        for times in finished:
            self.histograms["request_queue_time_seconds"].observe(times.queue)
            self.histograms["request_prefill_time_seconds"].observe(times.prefill)
            self.histograms["request_decode_time_seconds"].observe(times.decode)
            self.histograms["request_inference_time_seconds"].observe(times.prefill + times.decode)

    def prompted(self, n: int) -> None:
        """A prompt has its answers, `n` of which were asked for."""
        self.histograms["request_params_n"].observe(n)

    def finished(
        self, reason: str, prompt_tokens: int, generated: int, limit: int | None, first: float | None, total: float
    ) -> None:
        """One sequence ended.

        Args:
            reason: why.
            prompt_tokens, generated: its tokens.
            limit: tokens that its answer might have had.
            first, total: seconds from arrival to the first token and to the end.
        """
        if limit is not None:
            self.histograms["request_params_max_tokens"].observe(limit)
        self._success.labels(self.model, reason).inc()
        self.histograms["request_prompt_tokens"].observe(prompt_tokens)
        self.histograms["request_generation_tokens"].observe(generated)
        self.histograms["e2e_request_latency_seconds"].observe(total)
        if first is not None and generated > 1:
            per_token = (total - first) / (generated - 1)
            self.histograms["request_time_per_output_token_seconds"].observe(per_token)

    def page(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """All series for one scrape."""
        stats, info, label = self.stats(), self.info(), [self.model]
        used = stats.blocks_total - stats.blocks_free - stats.blocks_cached
        gauges = (
            ("num_requests_running", "Requests in the engine's batch.", stats.running),
            ("num_requests_waiting", "Requests in the engine's queue.", stats.waiting),
            ("kv_cache_usage_perc", "Share of the KV cache in use, 1 is all.", used / (stats.blocks_total or 1)),
            ("kv_cache_blocks", "Blocks of the KV cache.", stats.blocks_total),
            ("kv_cache_blocks_free", "Blocks that hold nothing.", stats.blocks_free),
            ("kv_cache_blocks_cached", "Blocks that are warm and unused.", stats.blocks_cached),
            *(() if info is None else _capacity(info)),
            *(() if info is None else _host_tier(info, stats)),
        )
        counters = (
            ("num_preemptions", "Requests sent back to the queue because no block was free.", stats.preemptions),
            ("prompt_tokens", "Prompt tokens computed or found in the cache.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits),
            ("host_cache_hits", "Prompt tokens found in the host tier alone.", stats.host_hits),
            ("host_cache_blocks_saved", "Blocks copied to the host tier.", stats.host_saved),
            ("host_cache_blocks_loaded", "Blocks copied back from the host tier.", stats.host_loaded),
            ("spec_decode_num_draft_tokens", "Tokens that were guessed.", stats.guesses),
            ("spec_decode_num_accepted_tokens", "Tokens that were guessed and came.", stats.guesses_kept),
            ("engine_steps", "Steps of the engine.", stats.steps),
            ("engine_restarts", "Times the engine died and was started again.", self.restarts()),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            gauge.add_metric(label, value)
            yield gauge
        waiting = GaugeMetricFamily(
            f"{PREFIX}num_requests_waiting_by_reason",
            "Requests in the engine's queue, by what they wait for.",
            labels=["model_name", "reason"],
        )
        # All of them wait for a seat or for blocks; the other reason is vLLM's, for what comes from elsewhere.
        waiting.add_metric([self.model, "capacity"], stats.waiting)
        waiting.add_metric([self.model, "deferred"], 0)
        yield waiting
        if info is not None:
            yield from self._of_ranks(info.ranks)
        for name, text, value in counters:
            counter = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
            counter.add_metric(label, value)
            yield counter
        for name, _, text in HISTOGRAMS:
            family = HistogramMetricFamily(PREFIX + name, text, labels=["model_name"])
            family.add_metric(label, self.histograms[name].cumulative(), self.histograms[name].total)
            yield family
        if info is not None:
            labels = {
                "block_size": str(info.block_size),
                "num_blocks": str(info.num_blocks),
                "num_gpu_blocks": str(info.num_blocks),
                **{
                    name: f"{value:g}" if isinstance(value, float) else str(value) for name, _, value in _capacity(info)
                },
                "cache_dtype": info.cache_dtype,
                "kernels": info.kernels,
            }
            config = GaugeMetricFamily(
                f"{PREFIX}cache_config_info", "How the cache is set up.", labels=["model_name", *labels]
            )
            config.add_metric([self.model, *labels.values()], 1)
            yield config
            yield self._determinism(info)

    def _determinism(self, info: EngineReady) -> Metric:
        test = info.determinism
        labels = {"kernels": info.kernels, "deterministic": str(test.deterministic).lower(), "self_test": test.digest}
        found = GaugeMetricFamily(
            f"{PREFIX}determinism_info", "Whether answers keep their bits under any load.",
            labels=["model_name", *labels],
        )  # fmt: skip
        found.add_metric([self.model, *labels.values()], 1)
        return found

    def _of_ranks(self, ranks: Sequence[RankReady]) -> Iterator[Metric]:
        size = GaugeMetricFamily(
            f"{PREFIX}tensor_parallel_size", "Ranks that hold the model together.", labels=["model_name"]
        )
        size.add_metric([self.model], max(1, len(ranks)))
        yield size
        if not ranks:
            return
        memory = GaugeMetricFamily(
            f"{PREFIX}rank_memory_bytes",
            "Bytes of each rank when it became ready: its weights, its cache, and all of its process.",
            labels=["model_name", "rank", "part"],
        )
        for rank in ranks:
            parts = (("weights", rank.weights), ("kv_cache", rank.kv_cache), ("resident", rank.resident))
            for part, value in parts:
                memory.add_metric([self.model, str(rank.rank), part], value)
        yield memory


def _host_tier(info: EngineReady, stats: EngineStats) -> tuple[tuple[str, str, float], ...]:
    """The second tier of the cache, and how full it is."""
    return (
        ("host_cache_blocks", "Blocks of the host tier.", info.host_blocks),
        ("host_cache_blocks_used", "Blocks of the host tier that hold something.", stats.host_blocks_used),
    )


def _capacity(info: EngineReady) -> tuple[tuple[str, str, float], ...]:
    """What the cache holds. vLLM has these as labels alone, with which nothing can be computed."""
    concurrency = info.num_blocks / max(1, -(-info.model_len // info.block_size))
    return (
        ("kv_cache_size_tokens", "Tokens that the KV cache holds.", info.num_blocks * info.block_size),
        ("kv_cache_max_concurrency", "Requests of the full context that the KV cache holds at once.", concurrency),
    )
