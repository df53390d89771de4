"""What callers give is refused by name where it comes in, also without the type checks that other tests run under."""

import subprocess
import sys

SETUP = """
import warnings
import numpy as np
import jaxcircuits as jc

graph = jc.Graph.transformer(2, 2)
scores = jc.Scores(graph, np.random.default_rng(0).normal(size=graph.shape), True, "made up", {})
zeros = np.zeros(graph.shape)

def check(call, *message):
    try:
        call()
    except ValueError as error:
        assert all(part in str(error) for part in message) and len(str(error)) < 300, error
        return
    raise AssertionError(f"taken: {message}")
"""


def check(calls, setup=""):
    """Runs the calls in a process of their own."""
    script = f"{SETUP}\n{setup}\n{calls}"
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_circuits_are_chosen_by_whole_numbers_and_thresholds():
    check("""
for edges in (2.5, True, "3", -1, np.float64(2), 900, 2**70):
    check(lambda: jc.Circuit.select(scores, edges=edges), "edges: expected 0 to 46, got")
for threshold in (float("nan"), float("inf"), True, "0.1", 10**400):
    check(lambda: jc.Circuit.select(scores, threshold=threshold), "threshold: expected a finite number, got")
assert jc.Circuit.select(scores, edges=np.int64(12)).edges == jc.Circuit.select(scores, edges=12).edges
for dtype in (float, int, np.float32, object):
    check(lambda: jc.Circuit(graph, zeros.astype(dtype), zeros, {}), "mask: expected True and False, got")
assert jc.Circuit(graph, zeros > 0, zeros, {}).num_edges == 0
""")


def test_autocircuits_edges_and_mibs_names():
    check("""
for score in (float("nan"), float("inf"), 10**400, True, "1", None):
    check(lambda: jc.from_autocircuit(graph, {"A0.1->MLP 1": score}), "score of A0.1->MLP 1: expected a finite number")
check(lambda: jc.from_autocircuit(graph, [3]), "sender->receiver', got 3")
""")
