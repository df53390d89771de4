"""Pictures and tables of finished records; nothing is computed here."""

from .pareto import plot_pareto as plot_pareto
