"""The ACDC paper's tables, computed: one file a table, each puts published numbers next to this library's.

Besides them `methods`: every scoring method against known circuits.

`TABLES[name](settings)` gives a `Table`; searches that are done are kept in the settings' folder, so that a run that
was interrupted goes on where it stopped.
"""

from collections.abc import Callable

from .greater_than import greater_than_68
from .induction import induction_pareto
from .methods import methods
from .roc import roc_of_task
from .settings import Settings as Settings
from .table import Curve as Curve
from .table import Row as Row
from .table import Table as Table
from .tracr import tracr

TABLES: dict[str, Callable[[Settings], Table]] = {
    "tracr": tracr,
    "greater-than-68": greater_than_68,
    "roc": roc_of_task,
    "induction-pareto": induction_pareto,
    "methods": methods,
}


def by_name(name: str) -> Callable[[Settings], Table]:
    """What computes a table. Raises ValueError for an unknown one."""
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}: expected one of {', '.join(TABLES)}")
    return TABLES[name]
