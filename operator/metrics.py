"""What the operator counts of itself, in a registry of its own."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Every metric by name; `registry` is what /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        gauge, counter = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        histogram = partial(Histogram, buckets=_SECONDS, registry=self.registry)
        self.reconcile_seconds = histogram(
            "plimsoll_reconcile_seconds", "Seconds of one look at one deployment, writes included."
        )
        self.queue_seconds = histogram("plimsoll_queue_seconds", "Seconds a deployment waited for a worker.")
        self.queue_depth = gauge("plimsoll_queue_depth", "Deployments waiting for a worker.")
        self.errors = counter("plimsoll_reconcile_errors_total", "Looks at a deployment that failed.", ["reason"])
        self.requests = counter("plimsoll_api_requests_total", "Calls to the API server.", ["verb", "code"])
        self.request_seconds = histogram(
            "plimsoll_api_request_seconds", "Seconds until the API server answered.", ["verb"]
        )
        self.writes = counter("plimsoll_writes_total", "Changes made, by kind of object.", ["kind"])
        self.deployments = gauge("plimsoll_deployments", "ModelDeployments by phase.", ["phase"])
        self.jobs = gauge("plimsoll_quantization_jobs", "QuantizationJobs by phase.", ["phase"])
        self.leader = gauge("plimsoll_leader", "1 while this process may write.")
        self.watch_age = gauge("plimsoll_watch_age_seconds", "Seconds since a kind's watch was last renewed.", ["kind"])
        self.watch_stale = counter(
            "plimsoll_watch_stale_total", "Objects that a watch had missed when it was checked.", ["kind"]
        )
        self.polls = counter("plimsoll_status_polls_total", "Reads of pods' status pages.", ["result"])
