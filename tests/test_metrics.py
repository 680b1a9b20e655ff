"""The metrics: both formats, every counter, and no label from outside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from twisted.trial.unittest import SynchronousTestCase

from kollator.observe.metrics import (
    DEEP_PHASES,
    RTT_WEIGHT,
    STATUSES,
    Counters,
    Gauges,
    Metrics,
    add,
    wants_openmetrics,
)
from kollator.signaling.messages import ErrorCode

OPENMETRICS = "application/openmetrics-text"
PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
BOTH = ("text/plain", OPENMETRICS)


def full_gauges() -> Gauges:
    """Every gauge, with a value that tells it from the others."""
    return Gauges(
        connections=lambda: {"client": 10, "worker": 2},
        workers=lambda: {"up": 2, "down": 1, "full": 0, "draining": 0},
        unwell=lambda: 4,
        panic=lambda: True,
        absent_clients=lambda: 3,
        ring_points=lambda: 300,
        uptime_s=lambda: 12.5,
        leader=lambda: True,
        term=lambda: 7,
        draining=lambda: False,
        sync_lag_s=lambda: {"front-2": 0.025},
        peer_up=lambda: {"front-2": 1},
    )


def front_metrics(gauges: Gauges | None = None) -> Metrics:
    """The metrics of a front that has just started."""
    return Metrics(Counters(), gauges or full_gauges(), node="front-1", version="0.1.0")


def families(metrics: Metrics, accept: str = "") -> list[Metric]:
    """What a scraper reads of them."""
    content_type, body = metrics.render(accept)
    text = body.decode()
    parsed: Iterable[Metric]
    if content_type.startswith(OPENMETRICS):
        parsed = openmetrics_parser.text_string_to_metric_families(text)
    else:
        parsed = parser.text_string_to_metric_families(text)
    return list(parsed)


def samples(metrics: Metrics, accept: str = "") -> dict[tuple[str, tuple[str, ...]], float]:
    """Sample values by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families(metrics, accept)
        for sample in family.samples
    }


class FormatTests(SynchronousTestCase):
    """What is served, and to whom."""

    def test_help_and_type(self) -> None:
        """Dashboards and linters read HELP and TYPE of every family, in both formats."""
        for accept in BOTH:
            metrics = front_metrics()
            metrics.counters.respond("/health", 200)
            _, body = metrics.render(accept)
            lines = body.decode().splitlines()
            told = [line.split(" ")[2] for line in lines if line.startswith("# TYPE ")]
            helped = {line.split(" ", 3)[2] for line in lines if line.startswith("# HELP ")}
            self.assertEqual(set(told), helped)
            self.assertEqual(len(told), len(set(told)), "a family that comes twice cannot be scraped")
            for family in families(metrics, accept):
                self.assertNotEqual(family.type, "unknown", family.name)
                self.assertTrue(family.documentation, family.name)
                self.assertTrue(family.samples, family.name)

    def test_names(self) -> None:
        """Names say whose they are and in which unit; process_ and python_ are Prometheus' own convention."""
        for accept in BOTH:
            for family in families(front_metrics(), accept):
                self.assertRegex(family.name, r"^(kollator|process|python)_[a-z_]+$")
                if family.name.endswith(("_seconds", "_bytes")) and family.name.startswith("kollator_"):
                    self.assertIn(family.unit, ("", family.name.rpartition("_")[2]))

    def test_same_values(self) -> None:
        """Both formats tell the same."""
        metrics = front_metrics()
        metrics.handed_off(312)
        ours = [
            {key: value for key, value in samples(metrics, accept).items() if key[0].startswith("kollator_")}
            for accept in BOTH
        ]
        self.assertEqual(ours[0], ours[1])

    def test_content_types(self) -> None:
        """A scraper parses what the content type says."""
        self.assertEqual(front_metrics().render("")[0], "text/plain; version=0.0.4; charset=utf-8")
        content_type, body = front_metrics().render(OPENMETRICS)
        self.assertEqual(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8")
        self.assertTrue(body.endswith(b"# EOF\n"))

    def test_accept(self) -> None:
        """Text for browsers and curl, OpenMetrics for who likes it as well as text or better."""
        for accept, expected in (
            ("", False),
            ("*/*", False),
            ("text/html,application/xhtml+xml,*/*;q=0.8", False),
            (OPENMETRICS, True),
            ("Application/OpenMetrics-Text; Version=1.0.0", True),
            (PROMETHEUS_ACCEPT, True),
            (f"{OPENMETRICS};q=0.3,text/plain;q=0.5", False),
            (f"{OPENMETRICS};q=0,text/plain;q=0", False),
            (f"{OPENMETRICS};q=x", False),
            (f"{OPENMETRICS};q=nan", False),
            (f"{OPENMETRICS}; q=2", False),
            (f"text/plain, {OPENMETRICS}", True),
        ):
            self.assertEqual(wants_openmetrics(accept), expected, accept)

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=60) | st.lists(st.sampled_from([OPENMETRICS, *";=,1", "q=", "*/*"])).map("".join))
    def test_any_accept(self, accept) -> None:
        """A header from outside chooses a format, and can do nothing else."""
        self.assertIn(wants_openmetrics(accept), (True, False))

    def test_own_registry(self) -> None:
        """Two fronts in one process, as in a simulator, must not share or clash."""
        one, two = front_metrics(), front_metrics()
        one.counters.handoffs += 1
        self.assertEqual(samples(one)["kollator_handoffs_total", ()], 1)
        self.assertEqual(samples(two)["kollator_handoffs_total", ()], 0)


class CountersTests(SynchronousTestCase):
    """Plain integers and bounded labels."""

    def test_every_counter_is_served(self) -> None:
        """A counter that no scrape shows is counted for nothing."""
        metrics = front_metrics()
        before = samples(metrics)
        for number, name in enumerate(Counters.__slots__, 1000):
            count = getattr(metrics.counters, name)
            if isinstance(count, int):
                setattr(metrics.counters, name, number)
            elif name == "responses":
                count["/health", "200"] = number
            else:
                count[next(iter(count))] = number
        served = {value for key, value in samples(metrics).items() if before.get(key) != value}
        self.assertLessEqual(set(range(1000, 1000 + len(Counters.__slots__))), served)

    def test_labels_from_the_start(self) -> None:
        """A rate over a series that appears with its first event misses that event."""
        served = samples(front_metrics())
        for code in get_args(ErrorCode):
            self.assertEqual(served["kollator_errors_total", (code,)], 0)
        for code in ("1013", "4400", "4401", "4403", "4408", "4409", "4413", "4429"):
            self.assertEqual(served["kollator_connections_closed_total", (code,)], 0)

    def test_unknown_labels(self) -> None:
        """A key from outside would let anybody fill the memory of front and scraper."""
        metrics = front_metrics()
        for number in range(1000):
            metrics.counters.refuse(f"reason-{number}")
            metrics.counters.close(5000 + number)
            metrics.counters.respond(f"/{number}", number)
        served = samples(metrics)
        self.assertEqual(served["kollator_connections_refused_total", ("other",)], 1000)
        self.assertEqual(served["kollator_connections_closed_total", ("other",)], 1000)
        self.assertLessEqual(len(metrics.counters.responses), len(STATUSES) + 1)
        self.assertEqual(sum(metrics.counters.responses.values()), 1000)

    def test_known_labels(self) -> None:
        """What is known is counted under its own name."""
        metrics = front_metrics()
        metrics.counters.refuse("origin")
        metrics.counters.close(4413)
        metrics.counters.respond("/bootstrap", 429)
        served = samples(metrics)
        self.assertEqual(served["kollator_connections_refused_total", ("origin",)], 1)
        self.assertEqual(served["kollator_connections_closed_total", ("4413",)], 1)
        self.assertEqual(served["kollator_http_responses_total", ("/bootstrap", "429")], 1)


    def test_outcomes(self) -> None:
        """What checks and the audit log report is served by its outcome, with every outcome from the start."""
        metrics = front_metrics()
        counters = metrics.counters
        families = (
            ("probes", counters.probes, ("ok", "failed")),
            ("deep_checks", counters.deep_checks, ("ok", "failed", "aborted")),
            ("audit_lines", counters.audit_lines, ("written", "lost", "failed")),
        )
        for number, (_, counts, outcomes) in enumerate(families):
            add(counts, outcomes[1], number + 2)
            add(counts, "from outside")
        served = samples(metrics)
        for number, (name, _, outcomes) in enumerate(families):
            expected = dict.fromkeys(outcomes, 0) | {outcomes[1]: number + 2, "other": 1}
            for outcome, value in expected.items():
                self.assertEqual(served[f"kollator_{name}_total", (outcome,)], value)
            self.assertEqual(sum(key[0] == f"kollator_{name}_total" for key in served), len(expected))
        counters.worker_lost_told += 3
        self.assertEqual(samples(metrics)["kollator_worker_lost_told_total", ()], 3)

    def test_known_causes_and_tasks(self) -> None:
        """Workers that a probe or a deep check takes out, and the tasks that do it, are told from all others."""
        metrics = front_metrics()
        for cause in ("closed", "ping", "probe", "webrtc", "replaced"):
            add(metrics.counters.workers_lost, cause)
        for task in ("losses", "audit", "reload", "probes", "deep"):
            add(metrics.counters.loop_failures, task)
        served = samples(metrics)
        self.assertEqual(served["kollator_workers_lost_total", ("other",)], 0)
        self.assertEqual(served["kollator_workers_lost_total", ("webrtc",)], 1)
        self.assertEqual(served["kollator_loop_failures_total", ("other",)], 0)


class GaugesTests(SynchronousTestCase):
    """What is asked for at the scrape."""

    def test_values(self) -> None:
        """Each gauge shows its own value, in its unit."""
        served = samples(front_metrics())
        for name, labels, value in (
            ("connections", ("client",), 10),
            ("workers", ("down",), 1),
            ("workers_unwell", (), 4),
            ("panic", (), 1),
            ("absent_clients", (), 3),
            ("ring_points", (), 300),
            ("uptime_seconds", (), 12.5),
            ("leader", (), 1),
            ("term", (), 7),
            ("draining", (), 0),
            ("sync_lag_seconds", ("front-2",), 0.025),
            ("peer_up", ("front-2",), 1),
            ("build_info", ("front-1", "0.1.0"), 1),
        ):
            self.assertEqual(served[f"kollator_{name}", labels], value, name)

    def test_left_out(self) -> None:
        """A front without a cluster has no lag: no value is better than a made-up one."""
        names = {name for name, _ in samples(front_metrics(Gauges(ring_points=lambda: 1)))}
        self.assertIn("kollator_ring_points", names)
        self.assertNotIn("kollator_sync_lag_seconds", names)

    def test_one_that_raises(self) -> None:
        """While the database is gone the other metrics are needed most."""

        def gone() -> float:
            raise RuntimeError("no database")

        metrics = front_metrics(Gauges(ring_points=gone, term=lambda: 7))
        served = samples(metrics)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(served["kollator_term", ()], 7)
        self.assertEqual(served["kollator_scrape_errors_total", ()], 1)
        self.assertNotIn(("kollator_ring_points", ()), served)

    def test_many_peers(self) -> None:
        """The number of label values has a cap, whatever is configured."""
        lag = {f"front-{number}": 0.0 for number in range(1000)}
        served = samples(front_metrics(Gauges(sync_lag_s=lambda: lag)))
        self.assertEqual(len([name for name, _ in served if name == "kollator_sync_lag_seconds"]), 256)

    def test_process(self) -> None:
        """Memory and open files are what an operator looks at first."""
        names = {name for name, _ in samples(front_metrics())}
        self.assertLessEqual({"process_resident_memory_bytes", "process_open_fds", "python_info"}, names)
        self.assertIn("python_gc_collections_total", names)


class HistogramTests(SynchronousTestCase):
    """Times."""

    def test_round_trip(self) -> None:
        """An operator sees at once how far the workers are; before the first answer there is nothing to see."""
        metrics = front_metrics()
        self.assertNotIn(("kollator_worker_rtt_seconds", ()), samples(metrics))
        metrics.ponged(0.04)
        for accept in BOTH:
            self.assertAlmostEqual(samples(metrics, accept)["kollator_worker_rtt_seconds", ()], 0.04)
        metrics.ponged(0.24)
        self.assertAlmostEqual(samples(metrics)["kollator_worker_rtt_seconds", ()], 0.04 + 0.2 * RTT_WEIGHT)
        for _ in range(200):
            metrics.ponged(0.1)
        self.assertAlmostEqual(samples(metrics)["kollator_worker_rtt_seconds", ()], 0.1, places=3)
        self.assertEqual(samples(metrics)["kollator_worker_ping_seconds_count", ()], 202)

    def test_deep_checks(self) -> None:
        """Each phase of a deep check has its own times; a phase that is none, and a time that is none, are left out."""
        metrics = front_metrics()
        for number, phase in enumerate(DEEP_PHASES, 1):
            metrics.deep_measured(phase, number / 100)
            metrics.deep_measured(phase, float("nan"))
            metrics.deep_measured(phase, -1.0)
        metrics.deep_measured("from outside", 1.0)
        for accept in BOTH:
            served = samples(metrics, accept)
            counted = {labels for name, labels in served if name == "kollator_deep_check_seconds_count"}
            self.assertEqual(counted, {(phase,) for phase in ("connect", "welcome", "answer", "ice", "open")})
            for number, phase in enumerate(DEEP_PHASES, 1):
                self.assertEqual(served["kollator_deep_check_seconds_count", (phase,)], 1)
                self.assertAlmostEqual(served["kollator_deep_check_seconds_sum", (phase,)], number / 100)
        metrics.deep_measured("open", float("inf"))
        self.assertLess(samples(metrics)["kollator_deep_check_seconds_sum", ("open",)], 1000)

    def test_observed(self) -> None:
        """Each time is served in seconds under its own name."""
        metrics = front_metrics()
        metrics.handed_off(312)
        metrics.bootstrapped(0.002)
        metrics.assigned(0.00003)
        metrics.ponged(0.04)
        totals = {"handoff": 0.312, "bootstrap": 0.002, "assignment": 0.00003, "worker_ping": 0.04}
        for accept in BOTH:
            served = samples(metrics, accept)
            for name, total in totals.items():
                self.assertEqual(served[f"kollator_{name}_seconds_count", ()], 1)
                self.assertAlmostEqual(served[f"kollator_{name}_seconds_sum", ()], total)

    def test_clients_lie(self) -> None:
        """A client tells the time of its own hand-off: one absurd number must not spoil the sum for ever."""
        metrics = front_metrics()
        for ms in (float("inf"), float("nan"), -1.0, 1e300):
            metrics.handed_off(ms)
        served = samples(metrics)
        self.assertEqual(served["kollator_handoff_seconds_count", ()], 2)
        self.assertEqual(served["kollator_handoff_seconds_sum", ()], 1200)
