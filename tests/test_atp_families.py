"""AtP* of other blocks than GPT-2's (grouped, parallel and joint heads), against its definition written out.

Here the model is run receiver by receiver, from `read` and `write` alone; slopes are JAX's of that run.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_engines import objective as objective

import jaxcircuits as jc


def run(model, tokens, reads_more, writes_more, frozen):
    """The last residual; what each node writes; what each moment's nodes write together.

    - `reads_more` [receiver, position, width], `writes_more` [moment, position, width]: added on the way.
    - `frozen`: the layer that no gradient passes (-1: none).
    """
    (stack,), at, column = model.layout.stacks, jnp.arange(len(tokens), dtype=jnp.int32), 0
    written, sums = list(model.embeddings(tokens)), []
    stream = sum(written)
    for layer in map(jnp.int32, range(stack.layers)):
        for number, moment in enumerate(stack.moments):
            ys, rows = {}, []
            for port in moment.ports:
                inputs = [stream + reads_more[column + i] for i in range(port.count)]
                ys[port.name] = [model.read(port.name, layer, jnp.int32(i), x, at) for i, x in enumerate(inputs)]
                column += port.count
            for nodes in moment.nodes:
                each = [[ys[port][i] for i in indices] for port, indices in nodes.inputs]
                if nodes.is_joint:
                    every = jnp.arange(nodes.count, dtype=jnp.int32)
                    rows += list(model.write(nodes.kind, layer, every, tuple(map(jnp.stack, each)), at))
                else:
                    own = enumerate(zip(*each, strict=True))
                    rows += [model.write(nodes.kind, layer, jnp.int32(i), y, at) for i, y in own]
            together, constant = sum(rows) + writes_more[len(sums)], model.constant(layer, number)
            stream = stream + jnp.where(frozen == layer, jax.lax.stop_gradient(together), together)
            stream = stream if constant is None else stream + constant[None]
            written, sums = written + rows, [*sums, together]
    assert (len(written), column + 1) == model.graph.shape
    return stream + reads_more[-1], jnp.stack(written), jnp.stack(sums)


@eqx.filter_jit
def slopes(model, tokens, last, answer, wrong, frozen):
    """Of the loss, where receivers read and where moments write; what nodes and moments write."""

    def loss(*more):
        residual, *rest = run(model, tokens, *more, frozen)
        logits = model.unembed(residual[last])
        return logits[wrong] - logits[answer], rest

    return jax.grad(loss, (0, 1), has_aux=True)(*nothing_more(model, tokens))


@eqx.filter_jit
def moved(model, tokens, column, changes):
    """What each moment's nodes write when one receiver reads more, for each change."""
    reads, writes = nothing_more(model, tokens)
    return jax.vmap(lambda change: run(model, tokens, reads.at[column].set(change), writes, -1)[2])(changes)


def nothing_more(model, tokens):
    return (
        jnp.zeros((count, len(tokens), model.config.hidden_size))
        for count in (model.graph.shape[1], model.graph.reads[-1])
    )


def by_hand(objective, layers):
    """Scores [run, edge] and of nodes [run, receiver] prompt by prompt; run by run a layer is frozen (-1: none)."""
    model, graph, labels = objective.model, objective.graph, objective.labels
    edges = np.zeros((objective.num_prompts, len(layers), *graph.shape))
    nodes = np.zeros((objective.num_prompts, len(layers), graph.shape[1]))
    for row, tokens in enumerate(objective.clean):
        place = objective.scored[row, 0], labels.answer[row, 0, 0], labels.wrong[row, 0, 0]
        of_runs = [slopes(model, tokens, *place, jnp.int32(layer)) for layer in layers]
        written, sums = map(np.asarray, of_runs[0][1])
        changes = objective.reference[:, row] - written
        for column, receiver in enumerate(graph.receiver_table):
            now = receiver.reads
            changed = np.where(graph.valid[:, column, None, None], changes, 0)
            if receiver.port in "qkv":
                new = moved(model, tokens, jnp.int32(column), jnp.asarray([*changed, changed.sum(0)]))
                more = np.asarray(new)[:, now] - sums[now]
            for number, ((of_reads, of_writes), _) in enumerate(of_runs):
                if receiver.port in "qk":
                    edges[row, number, :, column] = np.einsum("td,std->s", of_writes[now], more[:-1])
                else:
                    edges[row, number, :, column] = np.einsum("td,std->s", of_reads[column], changed)
                if receiver.port in "qkv":
                    nodes[row, number, column] = (of_writes[now] * more[-1]).sum()
                elif receiver.port == "m":
                    nodes[row, number, column] = (of_writes[now] * changes[receiver.owners[0]]).sum()
    return edges, nodes


@pytest.mark.mission
def test_atp_star_is_its_definition(objective, x64):
    """With GradDrop sizes, over the layers that may be frozen: both for `logits`, else the other one alone."""
    graph = objective.graph
    all_edges, all_nodes = by_hand(objective, (-1, 0, 1))
    counted = np.where(np.array(graph.receivers) == "logits", 2, 1)
    eap = jc.eap(objective).values
    for grad_drop in (False, True):
        edges, nodes = (
            (np.abs(each[:, 1:]).sum(1) / counted if grad_drop else each[:, 0]).mean(0)
            for each in (all_edges, all_nodes)
        )
        found = jc.atp_star(objective, grad_drop=grad_drop).values
        np.testing.assert_allclose(found, edges, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(jc.atp_nodes(objective, grad_drop=grad_drop), nodes, rtol=1e-9, atol=1e-11)
        wrong = np.abs(found - (np.abs(eap) if grad_drop else eap)).max(0)
        assert (wrong[[receiver.port in "qk" for receiver in graph.receiver_table]] > 1e-6).all()
