"""Information flow routes against the formula, one receiver, sender and position at a time."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc


def by_hand(model, tokens, last):
    graph = model.graph
    written = np.asarray(eqx.filter_jit(model.sender_values)(tokens))
    streams = np.asarray(eqx.filter_jit(model.receiver_streams)(tokens))
    shares = np.zeros(graph.shape)
    for receiver in range(graph.shape[1]):
        for position in range(last + 1):
            y = streams[graph.reads[receiver], position]
            near = np.array([np.abs(y).sum() - np.abs(z[position] - y).sum() for z in written])
            near = np.maximum(near, 0) * graph.valid[:, receiver]
            shares[:, receiver] += near / max(near.sum(), 1e-300) / (last + 1)  # 0/0: 0
    return shares


@pytest.mark.quick(1)
@pytest.mark.parametrize("model, kind", [("gpt2", "positions"), ("gpt2", "lengths"), ("attention-only", "last")])
def test_scores_are_the_formula(model, kind, x64):
    model, pairs = micro_model(model, dtype=jnp.float64), micro_pairs(batch=3, kind=kind)
    last_scored = pairs.length - 1 if pairs.positions is None else [max(np.flatnonzero(row)) for row in pairs.positions]
    scores = jc.information_flow_routes(jc.Objective(model, pairs, "kl", microbatch=2))
    expected = np.mean(
        [by_hand(model, jnp.asarray(tokens), last) for tokens, last in zip(pairs.clean, last_scored, strict=True)],
        axis=0,
    )
    np.testing.assert_allclose(scores.values, expected, rtol=1e-9, atol=1e-14)
    assert scores.values.sum(0).max() <= 1 + 1e-9 and scores.values.sum(0).mean() > 0.9
    assert not scores.signed and scores.run["backward_passes"] == 0


def test_positions_that_are_read_backwards_count(x64):
    """tracr's reverse reads later positions: what is scored reads the same ones, whichever it is."""
    loaded = jc.load("tracr-reverse")
    pairs = jc.tasks.by_name("tracr_reverse").generate(loaded.tokenizer)
    scored = [np.tile(at, (len(pairs), 1)) for at in (np.arange(4) == 1, np.arange(4) > 0)]
    made = [jc.PromptPairs(pairs.clean, pairs.corrupt, positions=positions) for positions in scored]
    first, every = (jc.information_flow_routes(jc.Objective(loaded.model, own, "l2", "zero")).values for own in made)
    np.testing.assert_array_equal(first, every)


def test_a_receiver_that_nothing_points_at_gets_zeros_not_nan(x64):
    """All proximities 0: the embedding is 0 and only biases are read."""
    model = micro_model("no-norm", dtype=jnp.float64)
    embeddings = lambda m: (m.token_embedding, m.position_embedding)  # noqa: E731
    model = eqx.tree_at(embeddings, model, tuple(jnp.zeros_like(leaf) for leaf in embeddings(model)))
    scores = jc.information_flow_routes(jc.Objective(model, micro_pairs(), "kl"))
    first = scores.values[:, scores.graph.reads == 0]
    np.testing.assert_array_equal(first, 0)


def test_random_scores_follow_the_seed():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs())
    first, again, other = (jc.random_scores(objective, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.values != other.values).any() and not first.signed and first.run["seed"] == 3
    inside = first.values[first.graph.valid]
    assert 0 <= inside.min() and inside.max() < 1
    with pytest.raises(ValueError, match="seed"):
        jc.random_scores(objective, seed=-1)
