"""GPT-2, and attention-only models and shortformers of its family, with a mask over the edges of the residual stream.

The masked forward. With `z_s` what sender s writes, `ref_s` what it wrote in the reference run and `mask_sr`
the edge, receiver r reads

    x_r = constants + sum_s [ mask_sr z_s + (1 - mask_sr) ref_s ]
        = base      + sum_s   mask_sr (z_s - ref_s),       base = constants + sum_s ref_s

so one buffer `delta[sender] = z - ref`, zero until its row is written, and one running sum `base` are all that
the layers hand on. Rows not yet written are zero, hence mask entries that are no edge have no effect. A mask may have a
third axis, position: `mask_srt`, with which position t of receiver r reads sender s.
Attention output biases belong to no head: they are part of the constants, always on.

In a shortformer positions are added to what queries and keys project, after the layer norm; they are never written to
the residual stream, so the sender `input` is the token alone and values know no position.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from ..graph import Graph
from ..types import NodeMask, PositionedMask, ReceiverValues, SenderValues, Tokens
from . import gpt2_displaced, gpt2_slopes
from .gpt2_block import MLP, Attention, Block, LayerNorm, NodeValues, normed
from .gpt2_config import GPT2Config


class GPT2(eqx.Module):
    """GPT-2 on one prompt.

    `precision` is JAX's matmul precision for every contraction: "highest" is full float32 on any device, where
    JAX's own default would be bfloat16 (TPU) or TF32 (recent GPUs).
    """

    token_embedding: Float[Array, "vocab width"]
    position_embedding: Float[Array, "max_position width"] | None
    blocks: Block
    final_norm: LayerNorm | None
    unembedding: Float[Array, "output width"] | None
    unembedding_bias: Float[Array, " output"] | None
    config: GPT2Config = eqx.field(static=True)
    precision: str = eqx.field(static=True, default="highest")

    @classmethod
    def random(cls, config: GPT2Config, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "GPT2":
        """Weights drawn as GPT-2's before training: N(0, 0.02), residual outputs divided by sqrt(2 layers)."""
        keys = iter(jax.random.split(key, 9))
        layers, heads, width, head_width = config.n_layer, config.n_head, config.n_embd, config.head_width

        def normal(*shape: int, std: float = 0.02) -> Array:
            return std * jax.random.normal(next(keys), shape, dtype)

        def norm(*shape: int) -> LayerNorm | None:
            if not config.layer_norm:
                return None
            return LayerNorm(jnp.ones(shape, dtype), jnp.zeros(shape, dtype), config.layer_norm_epsilon)

        zeros = partial(jnp.zeros, dtype=dtype)
        small = 0.02 / math.sqrt(2 * layers)
        attention = Attention(
            *(normal(layers, heads, width, head_width) for _ in "qkv"),
            *(zeros((layers, heads, head_width)) for _ in "qkv"),
            output=normal(layers, heads, head_width, width, std=small),
            output_bias=zeros((layers, width)),
            positions=normal(layers, config.n_positions, width) if config.positional == "shortformer" else None,
            causal=config.causal,
        )
        mlp = None
        if not config.attn_only:
            mlp = MLP(
                normal(layers, width, config.num_neurons),
                zeros((layers, config.num_neurons)),
                normal(layers, config.num_neurons, width, std=small),
                zeros((layers, width)),
                config.activation_function,
            )
        return cls(
            token_embedding=normal(config.vocab_size, width),
            position_embedding=normal(config.n_positions, width) if config.positional == "standard" else None,
            blocks=Block(attention, norm(layers, width), mlp, None if mlp is None else norm(layers, width)),
            final_norm=norm(width),
            unembedding=None if config.tie_word_embeddings else normal(config.num_outputs, width),
            unembedding_bias=zeros((config.num_outputs,)) if config.unembedding_bias else None,
            config=config,
        )

    @property
    def graph(self) -> Graph:
        return Graph(self.config.n_layer, self.config.n_head, mlps=not self.config.attn_only)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        return self.config.n_positions

    @property
    def dtype(self) -> Any:
        return self.token_embedding.dtype

    def __call__(
        self, tokens: Tokens, mask: PositionedMask | None = None, reference: SenderValues | None = None
    ) -> Float[Array, "position vocab"]:
        """Logits at every position.

        - `mask`: the circuit, [sender, receiver] or [sender, receiver, position]; None runs the whole model.
        - `reference`: what absent edges carry; needed with a mask.
        """
        return self.unembed(self.residual(tokens, mask, reference))

    def unembed(
        self, residual: Float[Array, "*positions width"], columns: Int[Array, " vocab"] | None = None
    ) -> Float[Array, "*positions vocab"]:
        """Logits of the value that the receiver `logits` reads: of all tokens, or of those in `columns` alone."""
        weight = self.token_embedding if self.unembedding is None else self.unembedding
        bias = self.unembedding_bias
        if columns is not None:
            weight, bias = weight[columns], None if bias is None else bias[columns]
        with jax.default_matmul_precision(self.precision):
            logits = normed(self.final_norm, residual) @ weight.T
        return logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape)

    def residual(
        self, tokens: Tokens, mask: PositionedMask | None = None, reference: SenderValues | None = None
    ) -> Float[Array, "position width"]:
        """The value that the receiver `logits` reads: of the whole model, or of the circuit `mask`."""
        if mask is None:
            with jax.default_matmul_precision(self.precision):
                return self._clean_residual(tokens)
        if reference is None:
            raise ValueError("a mask needs reference values: what absent edges carry, [sender, position, width]")
        return self.masked_run(tokens, mask, reference)[0]

    def masked_run(
        self, tokens: Tokens, mask: PositionedMask, reference: SenderValues, offsets: ReceiverValues | None = None
    ) -> tuple[Float[Array, "position width"], SenderValues]:
        """The circuit's `residual`, and what its nodes wrote minus the reference (`delta`).

        `offsets` are added to what each receiver reads: their gradients give those of every edge,
        `df/dmask_sr = <delta_s, df/doffset_r>`.
        """
        with jax.default_matmul_precision(self.precision):
            return self._masked_run(tokens, mask, reference, offsets)

    def node_run(
        self, tokens: Tokens, node_mask: NodeMask, reference: NodeValues | None = None
    ) -> Float[Array, "position width"]:
        """The value that `logits` reads when every node's output is `z x + (1 - z) x_ref`.

        - `node_mask`: z of every query, key, value and MLP output, in the order of `graph.receivers` without `logits`.
        - `reference`: x_ref, [layer, ...], as `node_values` gives it; None: zero, so that the mask multiplies.
        """
        heads, mlps = _split_layers(node_mask, self.config.n_layer, 3 * self.config.n_head)
        heads = heads.reshape(self.config.n_layer, 3, self.config.n_head)

        def step(x, layer):
            block, scale, head_mask, mlp_mask, values = layer
            stream = normed(block.attention_norm, x)
            outputs = block.attention.project(stream, stream, stream)
            outputs = _blend(head_mask[:, :, None, None], outputs, None if values is None else values.heads)
            mixed = block.attention.attend(outputs[0], outputs[1], outputs[2], scale)
            x = x + block.attention.sum_of_heads(mixed) + block.attention.output_bias[None]
            if block.mlp is None:
                return x, None
            return x + _blend(mlp_mask[:, None], block.mlp_output(x), None if values is None else values.mlp), None

        with jax.default_matmul_precision(self.precision):
            xs = (self.blocks, self._scales(), heads, mlps, reference)
            return jax.lax.scan(step, self.embeddings(tokens).sum(0), xs)[0]

    def node_values(self, reference: SenderValues) -> NodeValues:
        """What nodes compute, [layer, ...], when all that they read are `reference` values of the senders.

        From the senders' values of a run these are that run's.
        """
        heads, mlps = _split_layers(reference[self.num_embeddings :], self.config.n_layer, self.config.n_head)
        written = jnp.stack([heads.sum(1) + self.blocks.attention.output_bias[:, None], mlps.sum(1)], 1)
        first = reference[: self.num_embeddings].sum(0, keepdims=True)
        streams = jnp.cumsum(written.reshape(-1, *reference.shape[1:]), 0) + first
        streams = jnp.concatenate([first, streams[:-1]]).reshape(written.shape)
        with jax.default_matmul_precision(self.precision):
            return jax.vmap(Block.node_values)(self.blocks, streams)

    def sender_values(self, tokens: Tokens) -> SenderValues:
        """What every node of the clean run writes to the residual stream, in the order of `graph.senders`."""
        embeddings = self.embeddings(tokens)

        def step(x, layer):
            block, scale = layer
            heads = block.attention.heads(block.mix(x, scale))
            x = x + heads.sum(0) + block.attention.output_bias[None]
            if block.mlp is None:
                return x, heads
            written = block.mlp_output(x)
            return x + written, jnp.concatenate([heads, written[None]])

        with jax.default_matmul_precision(self.precision):
            _, written = jax.lax.scan(step, embeddings.sum(0), (self.blocks, self._scales()))
        return jnp.concatenate([embeddings, written.reshape(-1, *embeddings.shape[1:])])

    def receiver_slopes(
        self,
        tokens: Tokens,
        score: Callable[[Float[Array, "position width"]], Float[Array, ""]],
        held: gpt2_slopes.Held | None = None,
    ) -> tuple[SenderValues, ReceiverValues]:
        """What every node of the clean run writes, and the gradient of `score(residual)` at every receiver's input.

        `held`: senders that write given constants instead, which no gradient passes.
        """
        with jax.default_matmul_precision(self.precision):
            return gpt2_slopes.receiver_slopes(self, self.embeddings(tokens), score, held)

    def attention_effects(
        self,
        layer: Int[Array, ""],
        x: Float[Array, "position width"],
        changes: Float[Array, "change position width"],
        slopes: Float[Array, "run position width"],
    ) -> Float[Array, "run change kv head"]:
        """To first order in what heads write, what each change of the input of a query, key or value does.

        - `x`: what the layer's heads read. `changes`: added to one input of a head. `slopes`: gradients of several
          runs at what the heads write. The attention pattern is recomputed, not linearised.
        """
        with jax.default_matmul_precision(self.precision):
            return gpt2_slopes.attention_effects(self, layer, x, changes, slopes)

    def place(self, receiver: int) -> gpt2_displaced.Place:
        """Where a mask's column reads."""
        return gpt2_displaced.Place.of(self.config.n_layer, self.config.n_head, not self.config.attn_only, receiver)

    def displaced_residual(
        self,
        place: gpt2_displaced.Place,
        streams: Float[Array, "time position width"],
        written: SenderValues,
        offset: Float[Array, "position width"],
    ) -> Float[Array, "position width"]:
        """`residual` of the clean run (`streams`, `written`) in which one receiver reads `offset` more."""
        with jax.default_matmul_precision(self.precision):
            return gpt2_displaced.displaced_residual(self, place, streams, written, offset)

    def residual_from(self, x: Float[Array, "position width"], time: Int[Array, ""]) -> Float[Array, "position width"]:
        """`residual` of the plain run that reads `x` at a half-layer (a time of `receiver_streams`)."""
        with jax.default_matmul_precision(self.precision):
            return gpt2_displaced.residual_from(self, x, time)

    def receiver_streams(self, tokens: Tokens) -> Float[Array, "time position width"]:
        """What the clean run's receivers read: at time 2l the heads of layer l, at 2l + 1 its MLP, last `logits`."""

        def step(x, layer):
            block, scale = layer
            middle = x + block.attention.sum_of_heads(block.mix(x, scale)) + block.attention.output_bias[None]
            after = middle if block.mlp is None else middle + block.mlp_output(middle)
            return after, jnp.stack([x, middle])

        with jax.default_matmul_precision(self.precision):
            last, streams = jax.lax.scan(step, self.embeddings(tokens).sum(0), (self.blocks, self._scales()))
        return jnp.concatenate([streams.reshape(-1, *last.shape), last[None]])

    def attention_patterns(self, tokens: Tokens) -> Float[Array, "layer head position position"]:
        """How much each position of the clean run reads of each earlier one, in every head."""

        def pattern(block, scale, x):
            x = block.attention_input(x)
            query, key, _ = block.attention.project(x, x, x)
            return block.attention.pattern(query, key, scale)

        streams = self.receiver_streams(tokens)[:-1:2]
        with jax.default_matmul_precision(self.precision):
            return jax.vmap(pattern)(self.blocks, self._scales(), streams)

    def head_projection(
        self, kv: int, layer: Int[Array, ""], head: Int[Array, ""], x: Float[Array, "position width"]
    ) -> Float[Array, "position key"]:
        """One head's queries (`kv` 0), keys (1) or values (2); layer and head are traced: one compilation for all.

        Without a shortformer's positions, which `head_output` adds: `x` may be of any positions.
        """
        attention = self.blocks.attention
        weight = (attention.query, attention.key, attention.value)[kv][layer, head]
        bias = (attention.query_bias, attention.key_bias, attention.value_bias)[kv][layer, head]
        norm = jax.tree.map(lambda leaf: leaf[layer], self.blocks.attention_norm)
        return normed(norm, x) @ weight + bias[None]

    def head_output(
        self,
        layer: Int[Array, ""],
        head: Int[Array, ""],
        query: Float[Array, "query key"],
        key: Float[Array, "position key"],
        value: Float[Array, "position key"],
        query_positions: Int[Array, " query"],
    ) -> Float[Array, "query width"]:
        """What one head writes at some positions, from projections as `head_projection` gives them."""
        attention = self.blocks.attention
        if attention.positions is not None:
            positions = attention.positions[layer]
            query = query + positions[query_positions] @ attention.query[layer, head]
            key = key + positions[: key.shape[0]] @ attention.key[layer, head]
        scores = query @ key.T * self._scales()[layer]
        pattern = attention.softmax(scores, query_positions)
        return pattern @ value @ attention.output[layer, head]

    def mlp_output(self, layer: Int[Array, ""], x: Float[Array, "position width"]) -> Float[Array, "position width"]:
        """What the MLP of a layer writes; the layer is traced."""
        return jax.tree.map(lambda leaf: leaf[layer], self.blocks).mlp_output(x)

    def embeddings(self, tokens: Tokens) -> Float[Array, "embedding position width"]:
        """What the senders `graph.embeddings` write."""
        embedding = self.token_embedding[tokens]
        if self.position_embedding is not None:
            embedding = embedding + self.position_embedding[: tokens.shape[0]]
        return embedding[None]

    @property
    def num_embeddings(self) -> int:
        """Senders before the first block."""
        return len(self.graph.embeddings)

    def _scales(self) -> Float[Array, " layer"]:
        return jnp.asarray(self.config.attention_scales, self.dtype)

    def _clean_residual(self, tokens: Tokens) -> Float[Array, "position width"]:
        def step(x, layer):
            block, scale = layer
            x = x + block.attention.sum_of_heads(block.mix(x, scale)) + block.attention.output_bias[None]
            return x if block.mlp is None else x + block.mlp_output(x), None

        return jax.lax.scan(step, self.embeddings(tokens).sum(0), (self.blocks, self._scales()))[0]

    def _masked_run(
        self, tokens: Tokens, mask: PositionedMask, reference: SenderValues, offsets: ReceiverValues | None
    ) -> tuple[Float[Array, "position width"], SenderValues]:
        layers, heads, first = self.config.n_layer, self.config.n_head, self.num_embeddings
        embeddings = self.embeddings(tokens)

        split = partial(_split_layers, layers=layers)
        head_masks, mlp_masks = split(jnp.moveaxis(mask[:, :-1], 0, 1), first=3 * heads)
        head_references, mlp_references = split(reference[first:], first=heads)
        head_offsets, mlp_offsets = (None, None) if offsets is None else split(offsets[:-1], first=3 * heads)

        def step(carry, layer):
            base, delta = carry
            row = first + layer["index"] * ((delta.shape[0] - first) // layers)
            block = layer["block"]
            x = base[None] + jnp.einsum("rs...,s...d->r...d", layer["head_masks"], delta)
            x = _add(x, layer["head_offsets"]).reshape(3, heads, *base.shape)
            written = block.masked_heads(x, layer["scale"])
            delta = jax.lax.dynamic_update_slice_in_dim(delta, written - layer["head_references"], row, 0)
            base = base + layer["head_references"].sum(0) + block.attention.output_bias[None]
            if block.mlp is not None:
                x = base[None] + jnp.einsum("rs...,s...d->r...d", layer["mlp_masks"], delta)
                written = block.mlp_output(_add(x, layer["mlp_offsets"])[0])[None]
                delta = jax.lax.dynamic_update_slice_in_dim(delta, written - layer["mlp_references"], row + heads, 0)
                base = base + layer["mlp_references"][0]
            return (base, delta), None

        delta = jnp.zeros_like(reference).at[:first].set(embeddings - reference[:first])
        xs = {
            "block": self.blocks,
            "scale": self._scales(),
            "index": jnp.arange(layers),
            "head_masks": head_masks,
            "mlp_masks": mlp_masks,
            "head_references": head_references,
            "mlp_references": mlp_references,
            "head_offsets": head_offsets,
            "mlp_offsets": mlp_offsets,
        }
        (base, delta), _ = jax.lax.scan(step, (reference[:first].sum(0), delta), xs)
        x = base + jnp.einsum("s...,s...d->...d", mask[:, -1], delta)
        return _add(x, None if offsets is None else offsets[-1]), delta


def _add(x: Array, offset: Array | None) -> Array:
    return x if offset is None else x + offset


def _blend(z: Array, x: Array, reference: Array | None) -> Array:
    return z * x if reference is None else z * x + (1 - z) * reference


def _split_layers(x: Array, layers: int, first: int) -> tuple[Array, Array]:
    """Rows in graph order [layers * each, ...] to the attention's `first` rows and the MLP's, of every layer."""
    x = x.reshape(layers, -1, *x.shape[1:])
    return x[:, :first], x[:, first:]
