"""What is measured without a server: histograms, and how late the loop is."""

import json
import subprocess
import sys

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from ordertrack.histogram import Histogram


def test_a_value_counts_for_its_bound_and_all_larger_ones() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 7.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("0.1", 2), ("1.0", 4), ("+Inf", 5)]
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 8.65


def test_an_unused_histogram_is_all_zeros() -> None:
    assert Histogram((1.0,)).cumulative() == [("1.0", 0), ("+Inf", 0)]


def test_prometheus_reads_it_as_its_own() -> None:
    histogram = Histogram((0.005, 2.5))
    histogram.observe(0.001)
    histogram.observe(3)

    class Ours(Collector):
        def collect(self):  # type: ignore[no-untyped-def]
            family = HistogramMetricFamily("ours", "Ours.")
            family.add_metric((), histogram.cumulative(), histogram.sum)
            yield family

    registry = CollectorRegistry()
    registry.register(Ours())
    [family] = text_string_to_metric_families(generate_latest(registry).decode())
    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert samples["ours_bucket", "0.005"] == 1
    assert samples["ours_bucket", "2.5"] == 1
    assert samples["ours_bucket", "+Inf"] == 2
    assert samples["ours_count", None] == 2
    assert samples["ours_sum", None] == 3.001


# The loop belongs to a process: a fresh one, patched as the server is.
_BLOCKED = """
import warnings
warnings.simplefilter("ignore")
import eventlet, json
from eventlet.patcher import original
blocking = original("time").sleep
eventlet.monkey_patch()
from ordertrack.metrics import LoopWatch
watch = LoopWatch()
watch.start()
while sum(watch.lag.counts) < 3:
    eventlet.sleep(0.01)
blocking(0.6)
counted = sum(watch.lag.counts)
while sum(watch.lag.counts) == counted:
    eventlet.sleep(0.01)
late = sum(watch.lag.counts[watch.lag.bounds.index(0.5) :])
print(json.dumps({"late": late}))
"""


def test_a_blocked_event_loop_is_measured_and_logged() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _BLOCKED], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(ran.stdout)["late"] >= 1
    assert "event loop blocked for 0." in ran.stderr
