"""One file a task: prompts of a behaviour, made from a tokenizer, a seed and a size.

`TASKS[name].generate(tokenizer, seed=0, size=32)` gives `PromptPairs`; the texts work with any tokenizer in which
the words are single tokens (GPT-2's, and the bundled model's).
"""

from . import docstring as _docstring
from . import gendered_pronoun as _gendered_pronoun
from . import greater_than as _greater_than
from . import induction as _induction
from . import induction_text as _induction_text
from . import ioi as _ioi
from . import logic_gates as _logic_gates
from . import tracr_proportion as _tracr_proportion
from . import tracr_reverse as _tracr_reverse
from .circuits import internal_edges as internal_edges
from .task import Task as Task

_FILES = (
    *(_ioi, _greater_than, _docstring, _induction, _induction_text, _gendered_pronoun),
    *(_tracr_reverse, _tracr_proportion, _logic_gates),
)
TASKS: dict[str, Task] = {file.TASK.name: file.TASK for file in _FILES}


def by_name(name: str) -> Task:
    """The task of a name. Raises ValueError for an unknown one."""
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}, or a .npz, .jsonl or .csv file")
    return TASKS[name]
