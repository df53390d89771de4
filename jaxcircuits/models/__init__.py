"""One file an architecture, written for ONE prompt: `read`, `write` and what `model.py` asks for besides."""

from .gates import GATES as GATES
from .gates import Gates as Gates
from .gates import gate as gate
from .gpt2 import GPT2 as GPT2
from .gpt2_config import GPT2Config as GPT2Config
from .model import AbstractModel as AbstractModel
from .reset import reset_network as reset_network
from .runs import Computed as Computed
from .runs import NodeValues as NodeValues
from .slopes import Held as Held
from .tracr import Tracr as Tracr
from .tracr import TracrConfig as TracrConfig
from .tracr import permute_positions as permute_positions
