"""Methods of circuit discovery: each takes an `Objective` and gives a mask or scores."""

from .acdc import ACDCResult as ACDCResult
from .acdc import Decision as Decision
from .acdc import DenseEvaluator as DenseEvaluator
from .acdc import Evaluator as Evaluator
from .acdc import Progress as Progress
from .acdc import acdc as acdc
from .acdc import acdc_sweep as acdc_sweep
from .atp import atp_nodes as atp_nodes
from .atp import atp_star as atp_star
from .attribution import clean_corrupted as clean_corrupted
from .attribution import eap as eap
from .attribution import eap_ig_activations as eap_ig_activations
from .attribution import eap_ig_inputs as eap_ig_inputs
from .attribution import mask_ig as mask_ig
from .exact import exact as exact
from .exact import exact_nodes as exact_nodes
from .information_flow import information_flow_routes as information_flow_routes
from .uniform import random_scores as random_scores
