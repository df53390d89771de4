"""Methods of circuit discovery: each takes an `Objective` and gives a mask or scores."""

from .acdc import ACDCResult as ACDCResult
from .acdc import Decision as Decision
from .acdc import Progress as Progress
from .acdc import acdc as acdc
from .acdc import acdc_sweep as acdc_sweep
from .edge_pruning import edge_pruning as edge_pruning
from .evaluators import DenseEvaluator as DenseEvaluator
from .evaluators import Evaluator as Evaluator
from .hisp import hisp as hisp
from .hisp import node_attribution as node_attribution
from .hisp import node_ig as node_ig
from .learning import LearntMask as LearntMask
from .learning import State as State
from .optimal_ablation import OptimalReference as OptimalReference
from .optimal_ablation import optimal_ablation as optimal_ablation
from .subnetwork_probing import subnetwork_probing as subnetwork_probing
from .ugs import ugs as ugs
