"""One file an architecture, written for ONE prompt; `jax.vmap` goes outside.

What the rest of the library asks of a model (an `eqx.Module`):

- `graph`: its `Graph`; `vocab_size`, `max_positions`, `dtype`, `precision`.
- `model(tokens)`, `model(tokens, mask, reference)`: logits at every position (of `Tracr`: its output directions, of
  `Gates`: its outputs).
- `model.sender_values(tokens)`: what every node of the clean run writes to the residual stream.
- `model.residual(tokens, mask, reference)`: the value read by the receiver `logits`.
- `model.masked_run(tokens, mask, reference, offsets)`: that value, and what every node wrote minus the reference;
  `offsets`, one vector an input, are added to what each receiver reads (their gradients give every edge's). A mask may
  have a third axis, position (but of `Gates`, which has one position).
- `model.receiver_slopes(tokens, score, held)`: what every node of the clean run writes, and the gradient of
  `score(residual)` at every receiver's input; senders may be `Held` at constants.
- `model.attention_effects(layer, x, changes, slopes)`: first-order effects of changed q, k and v inputs with the
  attention pattern recomputed.
- `model.place(receiver)`, `model.displaced_residual(place, streams, written, offset)`: the clean run with one input
  displaced; `model.residual_from(x, time)`: the rest of a run from a half-layer on.
- `model.unembed(residual, columns)`: that value to logits, position by position; of some tokens alone if asked.
- `model.node_run(tokens, node_mask, reference)`: that value when a mask scales the outputs of queries, keys, values and
  MLPs; `model.node_values(reference)`: these outputs when all nodes read reference values.
- `model.attention_patterns(tokens)`: what each position of the clean run reads of each other, in every head.
- `model.has_slopes`: False where outputs are steps, which methods with gradients refuse; without it True.
- `model.tokenizer`: of a model that is built, not read from files.
- For live evaluation (without it ACDC evaluates whole masks): `model.receiver_streams(tokens)`, what each half-layer
  reads in the clean run, and single nodes by traced layer and head: `model.head_projection`, `model.head_output`,
  `model.mlp_output`.
"""

from .gates import GATES as GATES
from .gates import Gates as Gates
from .gates import gate as gate
from .gpt2 import GPT2 as GPT2
from .gpt2_config import GPT2Config as GPT2Config
from .gpt2_slopes import Held as Held
from .reset import reset_network as reset_network
from .tracr import Tracr as Tracr
from .tracr import TracrConfig as TracrConfig
from .tracr import permute_positions as permute_positions
