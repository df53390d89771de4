"""Pictures, pages and tables of finished records; nothing is computed here."""

from .page import render_page as render_page
from .page import write_page as write_page
from .pareto import plot_pareto as plot_pareto
