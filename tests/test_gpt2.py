"""The forward pass against other people's (transformers) and against a second one, written by hand."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, MICRO, micro_model, random_mask

import jaxcircuits as jc
from jaxcircuits.models import parts
from jaxcircuits.models.gpt2_config import ACTIVATIONS

TOKENS = np.array([3, 1, 4, 1, 5, 9], np.int32)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MICRO)
def test_all_edges_give_the_clean_run(name, x64):
    model = micro_model(name, dtype=jnp.float64)
    reference = eqx.filter_jit(model.sender_values)(jnp.asarray(TOKENS[::-1]))
    masked = eqx.filter_jit(model)(jnp.asarray(TOKENS), jnp.ones(model.graph.shape), reference)
    np.testing.assert_allclose(masked, eqx.filter_jit(model)(jnp.asarray(TOKENS)), rtol=1e-12, atol=1e-12)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MICRO)
def test_no_edges_give_the_reference_run(name, x64):
    model = micro_model(name, dtype=jnp.float64)
    other = jnp.asarray(TOKENS[::-1].copy())
    masked = eqx.filter_jit(model)(
        jnp.asarray(TOKENS), jnp.zeros(model.graph.shape), eqx.filter_jit(model.sender_values)(other)
    )
    np.testing.assert_allclose(masked, eqx.filter_jit(model)(other), rtol=1e-12, atol=1e-12)


def by_hand(model, tokens, mask, reference):
    """The circuit's residual stream before the final norm, one receiver at a time, in NumPy."""
    config, graph = model.config, model.graph
    attention, mlp = model.blocks.attention, model.blocks.mlp
    written = {"input": np.asarray(model.token_embedding)[tokens]}
    if config.positional == "standard":
        written["input"] = written["input"] + np.asarray(model.position_embedding)[: len(tokens)]
    constants = np.zeros_like(written["input"])

    def read(receiver):
        column = graph.receiver_index(receiver)
        total = constants.copy()
        for row, sender in enumerate(graph.senders):
            if graph.valid[row, column]:
                kept = np.broadcast_to(mask[row, column], len(tokens))  # one for all positions, or one a position
                total += np.where(kept[:, None], written[sender], reference[row])
        return total

    def normed(norm, layer, x):
        if norm is None:
            return x
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + config.layer_norm_epsilon)
        return scaled * np.asarray(norm.weight)[layer] + np.asarray(norm.bias)[layer]

    def placed(layer, kind):
        is_placed = config.positional == "shortformer" and kind != "v"
        return np.asarray(attention.positions)[layer, : len(tokens)] if is_placed else 0

    for layer in range(config.n_layer):
        for head in range(config.n_head):
            node = f"a{layer}.h{head}"
            q, k, v = (
                (normed(model.blocks.attention_norm, layer, read(f"{node}<{kind}>")) + placed(layer, kind))
                @ np.asarray(getattr(attention, field))[layer, head]
                + np.asarray(getattr(attention, f"{field}_bias"))[layer, head]
                for kind, field in zip("qkv", ("query", "key", "value"), strict=True)
            )
            scores = q @ k.T * config.attention_scales[layer]
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            written[node] = pattern @ v @ np.asarray(attention.output)[layer, head]
        constants = constants + np.asarray(attention.output_bias)[layer]
        if mlp is not None:
            x = normed(model.blocks.mlp_norm, layer, read(f"m{layer}"))
            hidden = x @ np.asarray(mlp.w_in)[layer] + np.asarray(mlp.b_in)[layer]
            hidden = np.asarray(ACTIVATIONS[config.activation_function](jnp.asarray(hidden)))
            written[f"m{layer}"] = hidden @ np.asarray(mlp.w_out)[layer] + np.asarray(mlp.b_out)[layer]
    return read("logits")


def test_every_mask_of_a_micro_model_equals_a_forward_written_by_hand(x64):
    """One head and one MLP: 8 edges, 256 circuits."""
    model = micro_model("one-head", dtype=jnp.float64)
    graph = model.graph
    reference = jax.random.normal(jax.random.key(5), (3, 6, 8), jnp.float64)
    assert graph.num_edges == 8
    masks = np.zeros((256, *graph.shape), bool)
    masks[:, graph.edges[:, 0], graph.edges[:, 1]] = list(itertools.product([False, True], repeat=8))
    run = eqx.filter_jit(eqx.filter_vmap(model.residual, in_axes=(None, 0, None)))
    ours = run(jnp.asarray(TOKENS), jnp.asarray(masks, float), reference)
    for mask, residual in zip(masks, ours, strict=True):
        np.testing.assert_allclose(residual, by_hand(model, TOKENS, mask, np.asarray(reference)), atol=1e-12)


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", MICRO)
def test_random_masks_equal_a_forward_written_by_hand(name, x64):
    model = micro_model(name, dtype=jnp.float64)
    reference = jax.random.normal(jax.random.key(5), (len(model.graph.senders), 6, 8), jnp.float64)
    run = eqx.filter_jit(model.residual)
    for seed in range(20):
        mask = random_mask(model.graph, seed)
        ours = run(jnp.asarray(TOKENS), jnp.asarray(mask, float), reference)
        np.testing.assert_allclose(ours, by_hand(model, TOKENS, mask, np.asarray(reference)), atol=1e-11)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gpt2", "shortformer"])
def test_masks_of_edges_at_positions_equal_a_forward_written_by_hand(name, x64):
    model = micro_model(name, dtype=jnp.float64)
    reference = jax.random.normal(jax.random.key(5), (len(model.graph.senders), 6, 8), jnp.float64)
    run = eqx.filter_jit(model.residual)
    for seed in range(20):
        mask = np.random.default_rng(seed).random((*model.graph.shape, 6)) < 0.5
        ours = run(jnp.asarray(TOKENS), jnp.asarray(mask, float), reference)
        np.testing.assert_allclose(ours, by_hand(model, TOKENS, mask, np.asarray(reference)), atol=1e-11)
    same = np.repeat(mask[..., :1], 6, -1)
    at_all = run(jnp.asarray(TOKENS), jnp.asarray(same, float), reference)
    everywhere = run(jnp.asarray(TOKENS), jnp.asarray(mask[..., 0], float), reference)
    np.testing.assert_allclose(at_all, everywhere, rtol=1e-12, atol=1e-12)


def test_a_shortformers_positions_are_in_queries_and_keys_alone():
    """The sender `input` is the token's, and a head that attends to itself alone writes the same at every position."""
    model = micro_model("shortformer")
    same = jnp.full(6, 4, jnp.int32)
    written = eqx.filter_jit(model.sender_values)(same)
    np.testing.assert_array_equal(written[0], np.tile(model.token_embedding[4], (6, 1)))
    np.testing.assert_allclose(written[1:3], written[1:3, :1].repeat(6, 1), rtol=1e-5, atol=1e-6)
    first, other = (eqx.filter_jit(model)(jnp.asarray(tokens, jnp.int32))[-1] for tokens in ([1, 2, 3], [2, 1, 3]))
    assert np.abs(first - other).max() > 1e-3  # a model without any position could not tell these apart


def test_the_unembedding_bias_is_added_to_some_logits_as_to_all():
    model = micro_model("shortformer")
    residual, columns = jnp.linspace(0, 1, 8), jnp.array([7, 2], jnp.int32)
    np.testing.assert_allclose(model.unembed(residual, columns), model.unembed(residual)[columns], rtol=1e-6)
    without = eqx.tree_at(lambda m: m.unembedding_bias, model, jnp.zeros(11))
    difference = model.unembed(residual) - without.unembed(residual)
    np.testing.assert_allclose(difference, model.unembedding_bias, rtol=1e-5, atol=1e-6)


def test_a_mask_without_reference_is_refused():
    model = micro_model("gpt2")
    with pytest.raises(ValueError, match="reference"):
        model(jnp.asarray(TOKENS), jnp.ones(model.graph.shape))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"activation_function": "gelu_10"}, "gelu_10"),
        ({"n_embd": 10, "n_head": 4}, "multiple"),
        ({"n_layer": 0}, "n_layer"),
        ({"vocab_size": -3}, "vocab_size"),
        ({"positional": "rotary"}, "positional must be one of standard, shortformer, got 'rotary'"),
    ],
)
def test_an_unsupported_config_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        jc.GPT2Config(**options)


def test_golden_logits_of_transformers(x64):
    """Stands in for the parity test where torch is not installed."""
    loaded = jc.load(GOLDEN / "transformers", dtype="float64")
    golden = np.load(GOLDEN / "transformers" / "logits.npz")
    ours = eqx.filter_jit(eqx.filter_vmap(loaded.model))(jnp.asarray(golden["tokens"]))
    np.testing.assert_allclose(ours, golden["logits"], rtol=0, atol=1e-10)


SIZES = {
    "tiny": dict(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=37, n_inner=24),
    "middle": dict(
        n_layer=5, n_head=4, n_embd=64, n_positions=20, vocab_size=301, scale_attn_by_inverse_layer_idx=True,
        activation_function="relu",
    ),
    "gpt2-small": dict(n_layer=12, n_head=12, n_embd=768, n_positions=32, vocab_size=50257),
}  # fmt: skip


@pytest.mark.mission
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("ignore")
def test_logits_equal_those_of_transformers(size, tmp_path):
    """Law 6: random weights, perturbed norms and biases, epsilon 1e-3; float32 to 2e-5, float64 to 1e-10."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**SIZES[size], layer_norm_epsilon=1e-3, attn_implementation="eager")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                weight += 0.1 * torch.randn_like(weight)
    theirs.save_pretrained(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, config.n_positions - 1))
    with torch.no_grad():
        single = theirs(torch.tensor(tokens)).logits.numpy()
        double = theirs.double()(torch.tensor(tokens)).logits.numpy()
    model = jc.load(tmp_path / "model").model
    ours = eqx.filter_jit(eqx.filter_vmap(model))(jnp.asarray(tokens, jnp.int32))
    assert np.abs(np.asarray(ours) - single).max() <= 2e-5
    with jax.enable_x64(True):
        model = jc.load(tmp_path / "model", dtype="float64").model
        ours = eqx.filter_jit(eqx.filter_vmap(model))(jnp.asarray(tokens, jnp.int32))
        assert np.abs(np.asarray(ours) - double).max() <= 1e-10


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_a_norm_in_float16_is_that_in_float32(name):
    """Though the squares of what it reads are beyond float16."""
    norm = (
        parts.RMSNorm(jnp.ones(64), 1e-6) if name == "RMSNorm" else parts.LayerNorm(jnp.ones(64), jnp.zeros(64), 1e-6)
    )
    x = 900 * jax.random.normal(jax.random.key(0), 64)
    found = jax.tree.map(lambda leaf: leaf.astype("float16"), norm)(x.astype("float16"))
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(found, np.float32), norm(x), atol=3e-3)
    if name == "RMSNorm":
        rows = jnp.stack([x / 4, 3 * x / 4])[:, None]
        found = jax.tree.map(lambda leaf: leaf.astype("float16"), norm).shares(rows.astype("float16"))
        np.testing.assert_allclose(np.asarray(found, np.float32), norm.shares(rows), atol=3e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_in_half_precision_is_that_in_float32(dtype):
    """Also where the scores of many positions are summed."""
    scores = jax.random.normal(jax.random.key(0), (2, 300, 300)).astype(dtype)
    at = jnp.arange(300)
    found, fine = (parts.attention_pattern(x, at) for x in (scores, scores.astype("float32")))
    assert found.dtype == scores.dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(fine.astype(dtype), np.float32))
