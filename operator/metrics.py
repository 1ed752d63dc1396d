"""What the operator counts of itself, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Every metric by name; `registry` is what /metrics shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self.reconcile_seconds = Histogram(
            "plimsoll_reconcile_seconds", "Seconds of one look at one deployment, writes included.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "plimsoll_queue_seconds", "Seconds a deployment waited for a worker.", buckets=_SECONDS, registry=registry
        )
        self.queue_depth = Gauge("plimsoll_queue_depth", "Deployments waiting for a worker.", registry=registry)
        self.errors = Counter(
            "plimsoll_reconcile_errors_total", "Looks at a deployment that failed.", ["reason"], registry=registry
        )
        self.requests = Counter(
            "plimsoll_api_requests_total", "Calls to the API server.", ["verb", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "plimsoll_api_request_seconds", "Seconds until the API server answered.", ["verb"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.writes = Counter("plimsoll_writes_total", "Changes made, by kind of object.", ["kind"], registry=registry)
        self.deployments = Gauge(
            "plimsoll_deployments", "ModelDeployments by phase.", ["phase"], registry=registry
        )  # fmt: skip
        self.jobs = Gauge("plimsoll_quantization_jobs", "QuantizationJobs by phase.", ["phase"], registry=registry)
        self.leader = Gauge("plimsoll_leader", "1 while this process may write.", registry=registry)
        self.watch_age = Gauge(
            "plimsoll_watch_age_seconds", "Seconds since a kind's watch was last renewed.", ["kind"], registry=registry
        )
        self.watch_stale = Counter(
            "plimsoll_watch_stale_total", "Objects that a watch had missed when it was checked.", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.polls = Counter(
            "plimsoll_status_polls_total", "Reads of pods' status pages.", ["result"], registry=registry
        )
