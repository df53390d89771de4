"""Tensors of GPT-2 checkpoints in Hugging Face's format, and of compiled transformers."""

from ..models import GPT2Config
from .table import Entry


def gpt2_table(config: GPT2Config) -> list[Entry]:
    """The tensors of a GPT-2 checkpoint, named as in Hugging Face's, without their prefix `transformer.`."""
    width, neurons, heads, key = config.n_embd, config.num_neurons, config.n_head, config.head_width
    qkv = tuple(f"blocks.attention.{field}" for field in ("query", "key", "value"))

    positions = "wpe.weight" if config.positional == "standard" else "h.{}.attn.wpe.weight"

    def norm(name: str, field: str) -> list[Entry]:
        if not config.layer_norm:
            return []
        return [Entry(f"{name}.{part}", (width,), (f"{field}.{part}",)) for part in ("weight", "bias")]

    entries = [
        Entry("wte.weight", (config.vocab_size, width), ("token_embedding",)),
        Entry(positions, (config.n_positions, width), (positions_field(config),)),
        *norm("h.{}.ln_1", "blocks.attention_norm"),
        Entry("h.{}.attn.c_attn.weight", (width, 3 * heads * key), qkv, (width, 3, heads, key), (1, 2, 0, 3)),
        Entry("h.{}.attn.c_attn.bias", (3 * heads * key,), tuple(f"{field}_bias" for field in qkv), (3, heads, key)),
        Entry("h.{}.attn.c_proj.weight", (heads * key, width), ("blocks.attention.output",), (heads, key, width)),
        Entry("h.{}.attn.c_proj.bias", (width,), ("blocks.attention.output_bias",)),
        *norm("ln_f", "final_norm"),
    ]
    if not config.attn_only:
        entries += [
            *norm("h.{}.ln_2", "blocks.mlp_norm"),
            Entry("h.{}.mlp.c_fc.weight", (width, neurons), ("blocks.mlp.w_in",)),
            Entry("h.{}.mlp.c_fc.bias", (neurons,), ("blocks.mlp.b_in",)),
            Entry("h.{}.mlp.c_proj.weight", (neurons, width), ("blocks.mlp.w_out",)),
            Entry("h.{}.mlp.c_proj.bias", (width,), ("blocks.mlp.b_out",)),
        ]
    if not config.tie_word_embeddings:
        entries.append(Entry("lm_head.weight", (config.num_outputs, width), ("unembedding",)))
    if config.unembedding_bias:
        entries.append(Entry("lm_head.bias", (config.vocab_size,), ("unembedding_bias",)))
    return entries


def positions_field(config: GPT2Config) -> str:
    """Where the model has its positions."""
    return "position_embedding" if config.positional == "standard" else "blocks.attention.positions"
