"""What the bundled model's circuits are: three methods compared, and what their heads read.

    python weights/explain.py [--model tiny-gpt2] [--size 32] [--picture FILE.png]

For IOI, Greater-Than and induction: ACDC under KL, and the same number of edges by EAP-IG and by exact patching; their
overlap with ACDC's circuit, the ROC of their scores against it, the faithfulness of each. Then every head of ACDC's
circuit: the token of which it reads most at the answer position, how much, and what removing the head's edges from
the circuit costs. Prints Markdown; the picture is the IOI circuit.
"""

import argparse
import collections

import numpy as np

import jaxcircuits as jc

THRESHOLDS = {"ioi": 0.1, "greater_than": 0.02, "induction": 0.05}


def line(*cells) -> str:
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def compare(objective: jc.Objective, circuit: jc.Circuit) -> None:
    """ACDC's circuit against as many edges by other scores."""
    exact, ig = jc.exact(objective), jc.eap_ig_inputs(objective, steps=5)
    print(line("method", "edges", "shared with ACDC", "ROC area (trapezoid)", "faithfulness"))
    print(line(*["---"] * 5))
    rows = [("ACDC", circuit, None)]
    for name, scores in (("EAP-IG, 5 steps", ig), ("exact patching", exact)):
        chosen = jc.Circuit.select(scores, edges=circuit.num_edges)
        rows.append((name, chosen, jc.roc_of_scores(scores, circuit.mask).trapezoid))
    for name, chosen, area in rows:
        shared = int((chosen.mask & circuit.mask).sum())
        value = jc.faithfulness(objective, chosen).value
        print(
            line(name, chosen.num_edges, shared, "-" if area is None else area, "refused" if value is None else value)
        )


def heads(objective: jc.Objective, circuit: jc.Circuit, tokenizer) -> None:
    """What each head of the circuit reads at the answer position, over the prompts, and what it is worth."""
    inspection = jc.inspect_circuit(objective, circuit, tokenizer, prompts=objective.num_prompts, effects=False)
    graph, before = objective.graph, float(objective(circuit.mask))
    print(line("head", "reads most, at the answer position", "share of prompts", "attention there", "KL without it"))
    print(line(*["---"] * 5))
    answer_at = np.asarray(objective.scored)[:, -1]
    for number, head in enumerate(inspection.heads):
        rows = np.array([one[number, at, : at + 1] for one, at in zip(inspection.patterns, answer_at, strict=True)])
        places = collections.Counter(rows.argmax(1).tolist())
        place, count = places.most_common(1)[0]
        words = collections.Counter(tokens[place].strip() for tokens in inspection.tokens)
        word = words.most_common(1)[0][0] if len(words) == 1 else f"e.g. {words.most_common(1)[0][0]}"
        without = circuit.mask & ~np.isin(graph.senders, [head])[:, None]
        rise = float(objective(without)) - before
        print(line(head, f"position {place} ({word})", count / len(rows), float(rows[:, place].mean()), rise))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-gpt2")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--picture")
    options = parser.parse_args()
    loaded = jc.load(options.model)
    for name, threshold in THRESHOLDS.items():
        pairs = jc.tasks.by_name(name).generate(loaded.tokenizer, size=options.size)
        objective = jc.Objective(loaded.model, pairs, "kl")
        circuit = jc.Circuit.of(jc.acdc(objective, threshold)).drop_dead_ends()
        print(f"\n### {name}: ACDC, KL, threshold {threshold}\n\n{loaded.tokenizer.decode(pairs.clean[0])}\n")
        compare(objective, circuit)
        print()
        heads(objective, circuit, loaded.tokenizer)
        if name == "ioi" and options.picture:
            jc.report.plot(circuit).savefig(options.picture, dpi=130)


if __name__ == "__main__":
    main()
