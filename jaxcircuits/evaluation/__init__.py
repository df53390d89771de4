"""`f` at many masks: what a circuit is worth, and what it does prompt by prompt."""

from .inspection import Inspection as Inspection
from .inspection import inspect_circuit as inspect_circuit
