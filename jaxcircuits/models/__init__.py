"""One file an architecture, written for ONE prompt: `read`, `write` and what `model.py` asks for besides."""

from .decoder import Decoder as Decoder
from .decoder import DecoderConfig as DecoderConfig
from .gates import GATES as GATES
from .gates import Gates as Gates
from .gates import gate as gate
from .gemma import Gemma as Gemma
from .gemma import Gemma2Config as Gemma2Config
from .gemma import Gemma3Config as Gemma3Config
from .gpt2 import GPT2 as GPT2
from .gpt2_config import GPT2Config as GPT2Config
from .llama import Llama as Llama
from .llama import LlamaConfig as LlamaConfig
from .llama import MistralConfig as MistralConfig
from .llama import Qwen2Config as Qwen2Config
from .llama import Qwen3Config as Qwen3Config
from .model import AbstractModel as AbstractModel
from .neox import NeoX as NeoX
from .neox import NeoXConfig as NeoXConfig
from .olmo2 import Olmo2 as Olmo2
from .olmo2 import Olmo2Config as Olmo2Config
from .reset import reset_network as reset_network
from .rotary import RopeScaling as RopeScaling
from .slopes import Held as Held
from .tracr import Tracr as Tracr
from .tracr import TracrConfig as TracrConfig
from .tracr import permute_positions as permute_positions
