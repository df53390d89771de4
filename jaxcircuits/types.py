"""Array aliases and the axis glossary: every axis name used in the library.

| axis       | einsum | meaning                                                              |
|------------|--------|----------------------------------------------------------------------|
| `sender`   | s      | a node's output written to the residual stream                       |
| `receiver` | r      | a node's input that reads the residual stream                        |
| `node`     |        | a query, key, value or MLP output: the receivers but `logits`         |
| `layer`    | l      | transformer block                                                    |
| `head`     | h      | attention head                                                       |
| `kv`       | c      | which of a head's three inputs: 0 query, 1 key, 2 value              |
| `position` | t, u   | token position (t reads, u is read)                                  |
| `width`    | d      | residual stream                                                      |
| `key`      | k      | one head's query, key or value                                       |
| `neuron`   | n      | hidden unit of an MLP                                                |
| `vocab`    | v      | token id                                                             |
| `output`   |        | one of a model's logits: a token, or what a compiled program writes   |
| `batch`    | b      | prompt                                                               |
| `scored`   | p      | token position at which logits are read                              |
| `circuit`  | m      | one of many masks                                                    |
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

Tokens = Int[Array, " position"]
"""Token ids of one prompt."""

Logits = Float[Array, " vocab"]
"""Next-token logits at one position."""

Mask = Float[Array, "sender receiver"]
"""A circuit: 1 keeps an edge's running value, 0 takes the reference value. Entries that are no edge are ignored."""

PositionedMask = Float[Array, "sender receiver *position"]
"""A circuit, or with a third axis one whose edges are kept at some token positions and not at others."""

NodeMask = Float[Array, " node"]
"""One number for each query, key, value and MLP output, in the order of `graph.receivers` without `logits`."""

SenderValues = Float[Array, "sender position width"]
"""What every node writes to the residual stream on one prompt: of a run, or the reference of absent edges."""

ReceiverValues = Float[Array, "receiver position width"]
"""One vector an input: the values of, or offsets added to, everything that reads the residual stream."""

EdgeBools = Bool[np.ndarray, "sender receiver"]
"""A circuit on the host."""

EdgeScores = Float[np.ndarray, "sender receiver"]
"""One number an edge, on the host; 0 where there is no edge."""

Model = Any
"""Any architecture of `jaxcircuits.models`; the interface is stated in `jaxcircuits/models/architecture.py`."""

MaskLike = Any
"""An array of numbers from 0 to 1, or what has such a `mask`: a circuit, a result of a search."""
