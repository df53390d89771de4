"""Compiles the bundled RASP programs to weights (needs the extra `compile`: pip install -e .[compile]).

python weights/compile_tracr.py --out weights

Deterministic: the compiler sets every weight. Tensors are named as in a GPT-2 checkpoint; `lm_head.weight` picks the
residual directions of the output.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

import jaxcircuits as jc

BOS, PAD = "BOS", "compiler_pad"
PROGRAMS = {  # name: the program, its vocabulary, tokens of a prompt without BOS
    "tracr-reverse": (lambda: lib.make_reverse(rasp.tokens), {1, 2, 3}, 5),
    "tracr-proportion": (lambda: lib.make_frac_prevs(rasp.tokens == "x"), {"w", "x", "y", "z"}, 5),
    "tracr-sort": (lambda: lib.make_sort_unique(rasp.tokens, rasp.tokens), {1, 2, 3, 4}, 4),
    "tracr-balance": (lambda: lib.make_pair_balance(rasp.tokens, "(", ")"), {"(", ")"}, 6),
}


def compiled(name):
    """The haiku model of a program, and the names of the residual directions that hold its output.

    A numerical output has one direction, a categorical one has one for each value, in the encoder's order.
    """
    make, vocabulary, length = PROGRAMS[name]
    program = make()
    model = compiling.compile_rasp_to_model(program, vocab=vocabulary, max_seq_len=length, compiler_bos=BOS)
    values = getattr(model.output_encoder, "encoding_map", None)
    names = [program.label] if values is None else [f"{program.label}:{value}" for value in values]
    return model, tuple(names)


def config_of(model, outputs):
    """Sizes and names; one more position than the program's inputs, for BOS."""
    sizes = model.model_config
    return jc.TracrConfig(
        vocab_size=model.input_encoder.vocab_size,
        n_positions=len(model.params["pos_embed"]["embeddings"]),
        n_embd=len(model.residual_labels),
        n_layer=sizes.num_layers,
        n_head=sizes.num_heads,
        n_inner=sizes.mlp_hidden_size,
        n_key=sizes.key_size,
        directions=tuple(model.residual_labels),
        outputs=outputs,
    )


def convert(model, outputs):
    """The haiku parameters as a `jaxcircuits.Tracr`."""
    config = config_of(model, outputs)
    heads, key, width = config.n_head, config.head_width, config.n_embd

    def stacked(part, leaf, *shape):
        layers = [model.params[f"transformer/layer_{layer}/{part}"][leaf] for layer in range(config.n_layer)]
        return jnp.stack([jnp.asarray(layer, jnp.float32).reshape(shape) for layer in layers])

    def project(name):
        return jnp.swapaxes(stacked(f"attn/{name}", "w", width, heads, key), 1, 2)

    def bias(name):
        return stacked(f"attn/{name}", "b", heads, key)

    skeleton = jc.Tracr.random(config, jax.random.key(0))
    attention, mlp = skeleton.blocks.attention, skeleton.blocks.mlp
    names = ("query", "key", "value")
    fields = {
        "token_embedding": model.params["token_embed"]["embeddings"],
        "position_embedding": model.params["pos_embed"]["embeddings"],
        "unembedding": np.eye(width)[[config.directions.index(label) for label in outputs]],
    }
    attention_fields = {name: project(name) for name in names} | {f"{name}_bias": bias(name) for name in names}
    attention_fields |= {
        "output": stacked("attn/linear", "w", heads, key, width),
        "output_bias": stacked("attn/linear", "b", width),
    }
    mlp_fields = {
        "w_in": stacked("mlp/linear_1", "w", width, config.num_neurons),
        "b_in": stacked("mlp/linear_1", "b", config.num_neurons),
        "w_out": stacked("mlp/linear_2", "w", config.num_neurons, width),
        "b_out": stacked("mlp/linear_2", "b", width),
    }
    blocks = _with(skeleton.blocks, {"attention": _with(attention, attention_fields), "mlp": _with(mlp, mlp_fields)})
    arrays = {key: jnp.asarray(value, jnp.float32) for key, value in fields.items()}
    return _with(skeleton, arrays | {"blocks": blocks})


def _with(module, fields):
    return eqx.tree_at(lambda module: [getattr(module, name) for name in fields], module, list(fields.values()))


def tokenizer_of(model):
    """One token a word; the compiler's padding, which no program knows, stands for unknown words."""
    vocabulary = {str(value): index for value, index in model.input_encoder.encoding_map.items()}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=PAD))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token=PAD, bos_token=BOS, pad_token=PAD)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    for name in PROGRAMS:
        model, outputs = compiled(name)
        weights = convert(model, outputs)
        jc.save(weights, out / name, tokenizer_of(model))
        print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(weights))} weights -> {out / name}")


if __name__ == "__main__":
    main()
