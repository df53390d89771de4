"""Methods of circuit discovery: each takes an `Objective` and gives a mask or scores."""

from .acdc import ACDCResult as ACDCResult
from .acdc import Decision as Decision
from .acdc import Progress as Progress
from .acdc import acdc as acdc
from .acdc import acdc_sweep as acdc_sweep
from .evaluators import DenseEvaluator as DenseEvaluator
from .evaluators import Evaluator as Evaluator
