"""Circuit discovery as transformations of one function of an edge mask.

tokens -> PromptPairs -> Objective f(mask) -> Scores | Mask -> Circuit -> evaluation -> report
"""

from . import metrics as metrics
from . import report as report
from . import tasks as tasks
from .batching import device_mesh as device_mesh
from .batching import use_compilation_cache as use_compilation_cache
from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import bundled as bundled
from .checkpoints import load as load
from .checkpoints import save as save
from .circuit import Circuit as Circuit
from .data import PromptPairs as PromptPairs
from .discovery import ACDCResult as ACDCResult
from .discovery import Decision as Decision
from .discovery import DenseEvaluator as DenseEvaluator
from .discovery import LearntMask as LearntMask
from .discovery import OptimalReference as OptimalReference
from .discovery import Progress as Progress
from .discovery import State as State
from .discovery import acdc as acdc
from .discovery import acdc_sweep as acdc_sweep
from .discovery import atp_nodes as atp_nodes
from .discovery import atp_star as atp_star
from .discovery import clean_corrupted as clean_corrupted
from .discovery import eap as eap
from .discovery import eap_ig_activations as eap_ig_activations
from .discovery import eap_ig_inputs as eap_ig_inputs
from .discovery import edge_pruning as edge_pruning
from .discovery import exact as exact
from .discovery import exact_nodes as exact_nodes
from .discovery import hisp as hisp
from .discovery import information_flow_routes as information_flow_routes
from .discovery import mask_ig as mask_ig
from .discovery import node_attribution as node_attribution
from .discovery import node_ig as node_ig
from .discovery import optimal_ablation as optimal_ablation
from .discovery import random_scores as random_scores
from .discovery import subnetwork_probing as subnetwork_probing
from .discovery import ugs as ugs
from .evaluation import Inspection as Inspection
from .evaluation import inspect_circuit as inspect_circuit
from .graph import Graph as Graph
from .live import LiveEvaluator as LiveEvaluator
from .metrics import Labels as Labels
from .models import GPT2 as GPT2
from .models import GPT2Config as GPT2Config
from .nodes import NodeObjective as NodeObjective
from .objective import Objective as Objective
from .scores import Scores as Scores
from .scores import ensemble as ensemble
