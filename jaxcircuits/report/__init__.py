"""Pictures, pages and texts of finished records; nothing is computed here."""

from .curves import plot_comparison as plot_comparison
from .export import to_dot as to_dot
from .export import to_markdown as to_markdown
from .export import to_networkx as to_networkx
from .page import render_page as render_page
from .page import write_page as write_page
from .pareto import plot_pareto as plot_pareto
from .plot import plot as plot
from .side_by_side import render_comparison as render_comparison
from .side_by_side import write_comparison as write_comparison
