"""`score` and `prune`: scores of all edges, and circuits from them."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..circuit import RANKS, Circuit, could_be_in
from ..conditional import without
from ..crossings import Peap, PeapCircuit
from ..discovery import conditional_scores, methods, score_replicates
from ..evaluation import retained
from ..ilp import select_connected
from .config import Context, config_of
from .lists import BEST, peap_of, print_circuit, print_peap, print_peap_circuit
from .options import (
    Checkpoint,
    Config,
    PromptOptions,
    TaskName,
    check_fillable,
    check_writable,
    load,
    named_in,
    out,
    recorded,
    span_of,
    takes_groups,
    warnings_as_lines,
)

SELECT = ("top", "ilp")


@takes_groups
def score(
    ctx: Context,
    task: TaskName,
    method: Annotated[str, typer.Option(help="see `jaxcircuits methods`")] = "eap",
    steps: Annotated[int | None, typer.Option(help="points of a path, for the methods that have one")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a method's hyperparameter; repeatable")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="score edges at one token position, as 3, or a span before 7, as 3:7")
    ] = None,
    within: Annotated[
        Path | None, typer.Option(help="learn only the edges of this circuit file, e.g. of `prune`; learnt masks")
    ] = None,
    absent: Annotated[
        str | None,
        typer.Option(
            "--without", help="given that these are absent: a circuit's file, or nodes and edges, as a9.h6,m0->m1"
        ),
    ] = None,
    change: Annotated[
        bool, typer.Option("--change", help="with --without: less the scores with nothing absent")
    ] = False,
    replicates: Annotated[
        int, typer.Option(help="bootstrap replicates for intervals, of methods that are means over prompts", min=0)
    ] = 0,
    prompts: PromptOptions = PromptOptions(metric="logit_diff"),
    checkpoint: Checkpoint = None,
    config: Config = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="write the scores to this JSON file")] = None,
) -> None:
    """Scores every edge with one method and prints the best."""
    check_writable(task, within, absent, config, prompts.model, out=out_file)
    chosen = methods.PEAP if method == methods.PEAP.name else methods.by_name(method)
    without_spans = prompts.spans is None
    if chosen is methods.PEAP and (without_spans or positions is not None or absent is not None or replicates):
        raise ValueError("--method peap: expected --spans, and no --positions, --without and --replicates")
    if within is not None and not chosen.takes_within:
        raise ValueError(f"--within: {method} scores every edge alone: prune its scores; leave it out")
    options = [*(option or []), *([] if steps is None else [f"steps={steps}"])]
    hyperparameters = chosen.read(options)
    if "seed" in chosen.defaults:
        hyperparameters.setdefault("seed", prompts.seed)
    if positions is not None:
        hyperparameters["positions"] = [_span(positions, chosen)]
    if replicates and (positions is not None or "seed" in chosen.defaults):
        raise ValueError(
            "--replicates: expected a method without a seed, at all positions: every prompt is scored once"
        )
    if change and absent is None:
        raise ValueError("--change: expected --without as well")
    if absent is not None and replicates:
        raise ValueError("--without: expected no --replicates")
    check_fillable(checkpoint=checkpoint)
    if checkpoint is not None:
        if not chosen.takes_checkpoint and not replicates:
            raise ValueError(f"--checkpoint: {method} has nothing to keep: it takes {chosen.cost}; leave it out")
        hyperparameters["checkpoint"] = checkpoint
    with warnings_as_lines():
        objective, run, *_ = load(task, prompts)
        if within is not None:
            hyperparameters["within"] = Circuit.load(within)
        scores: Any
        gone = _absent(absent)
        if change:
            scores = conditional_scores(objective, chosen.run, gone, **hyperparameters)
        elif replicates:
            scores = score_replicates(objective, chosen.run, count=replicates, seed=prompts.seed, **hyperparameters)
        else:
            scores = chosen.run(without(objective, gone), **hyperparameters)
    if positions is not None:
        scores = scores.at(0)
    record = {"d_model": objective.d_model, "config": config_of(ctx), **run}
    if isinstance(scores, Peap):
        of_spans = dataclasses.replace(scores.within, run=Circuit.of(scores.within, **record).run)
        scored: Any = dataclasses.replace(scores, within=of_spans)
        print_peap(scored)
    else:
        scored = Circuit.of(scores, **record)
        _print_scores(scored)
    if out_file is not None:
        scored.save(out_file)
        out.print(f"written to {out_file}", markup=False)


def prune(
    ctx: Context,
    file: Annotated[Path, typer.Argument(help="scores: a JSON file of `score`, of MIB or of EAP-IG")],
    edges: Annotated[int | None, typer.Option(help="take so many of the best edges")] = None,
    threshold: Annotated[float | None, typer.Option(help="take the edges that score at least this")] = None,
    at_least: Annotated[
        float | None, typer.Option(help="take the edges that so large a share of a circuit's replicates keeps, as 0.95")
    ] = None,
    rank: Annotated[str, typer.Option(help=f"by scores or their sizes: {', '.join(RANKS)}")] = "signed",
    greedy: Annotated[bool, typer.Option(help="from the logits on, only edges into nodes that are in")] = False,
    select: Annotated[str, typer.Option(help="top, or ilp: the largest total score without dead ends")] = "top",
    retain: Annotated[
        float | None, typer.Option(help="the fewest best edges with this faithfulness, as 0.95; runs the model")
    ] = None,
    config: Config = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="write the circuit to this JSON file")] = None,
) -> None:
    """Takes the best edges of a file of scores, or the sure ones of a circuit with replicates, without dead ends."""
    check_writable(file, config, out=out_file)
    if (found := peap_of(file)) is not None:
        is_other = greedy or select != "top" or any(given is not None for given in (threshold, at_least, retain))
        return _prune_peap(ctx, found, None if is_other else edges, rank, out_file)
    scored = Circuit.load(file)
    check_writable(*(named_in(scored.run) if retain is not None else ()), out=out_file)
    choices = {"edges": edges, "threshold": threshold, "at_least": at_least}
    circuit = _selected(scored, choices, retain, rank=rank, greedy=greedy, select=select)
    circuit = Circuit.of(circuit, d_model=scored.d_model, config_of_selection=config_of(ctx))
    print_circuit(circuit)
    chosen, kept = circuit.run["edges_with_dead_ends"], circuit.run["edges_kept"]
    out.print(f"{chosen} edges chosen, {chosen - kept} of them dead ends")
    if retain is not None:
        out.print(f"faithfulness {circuit.run['retention']['faithfulness']:.4f}, found by bisection (one crossing)")
    if out_file is not None:
        circuit.save(out_file)
        out.print(f"written to {out_file}", markup=False)


def _selected(
    scored: Circuit, choices: dict[str, Any], retain: float | None, *, rank: str, greedy: bool, select: str
) -> Circuit:
    """The circuit of `choices` of `Circuit.select`, or of a share of faithfulness that is to stay."""
    edges = choices["edges"]
    if select not in SELECT:
        raise ValueError(f"--select: expected one of {', '.join(SELECT)}, got {select!r}")
    if edges is not None and edges > (most := int(could_be_in(scored).sum())):
        raise ValueError(f"--edges: expected at most {most}: the others were absent when they were scored, got {edges}")
    is_other = greedy or any(choices[name] is not None for name in ("threshold", "at_least"))
    if retain is not None:
        if is_other or edges is not None or select != "top":
            raise ValueError(
                "--retain says how many edges: leave out --edges, --threshold, --at-least, --greedy, --select"
            )
        with warnings_as_lines():
            return retained(recorded(scored.run).load()[0], scored, retain, rank=rank)
    if select == "ilp":
        if is_other or edges is None:
            raise ValueError("--select ilp needs --edges, without --threshold, --at-least and --greedy")
        return select_connected(scored, edges, rank=rank)
    return Circuit.select(scored, **choices, rank=rank, greedy=greedy)


def _prune_peap(ctx: Context, found: Peap | PeapCircuit, edges: int | None, rank: str, out_file: Path | None) -> None:
    """The circuit of so many edges of PEAP's scores."""
    if isinstance(found, PeapCircuit) or edges is None:
        raise ValueError(
            "of PEAP: expected a file of scores, and --edges (--rank) alone: the circuit grows from logits"
        )
    circuit = found.circuit(edges, rank=rank)
    run = {**circuit.within.run, "config_of_selection": config_of(ctx)}
    circuit = dataclasses.replace(circuit, within=dataclasses.replace(circuit.within, run=run))
    print_peap_circuit(circuit)
    if out_file is not None:
        circuit.save(out_file)
        out.print(f"written to {out_file}", markup=False)


def _absent(text: str | None) -> Circuit | list[str]:
    """What --without names: a circuit of a file, or nodes and edges."""
    if text is None:
        return []
    return Circuit.load(text) if Path(text).suffix == ".json" else text.split(",")


def _span(text: str, method: methods.Method) -> tuple[int, int]:
    if not method.takes_positions:
        raise ValueError(f"--positions: {method.name} scores edges at all positions together")
    return span_of(text)


def _print_scores(scored: Circuit) -> None:
    run, graph = scored.run, scored.graph
    names: list[Any] = [run[key] for key in ("method", "metric", "reference")]
    out.print(f"{run['task']} on {run['model']}, {run['prompts']} prompts, {', '.join(names)}", markup=False)
    record = run.get("score_replicates")
    within = np.full(graph.shape, "", object)
    if record is not None:
        within[graph.valid] = [
            f"  {low:+.3g} to {high:+.3g}" for low, high in zip(record["low"], record["high"], strict=True)
        ]
    ranked = np.argwhere(could_be_in(scored))
    best = ranked[np.argsort(-scored.scores[tuple(ranked.T)], kind="stable")[:BEST]]
    for sender, receiver in best:
        name = graph.edge_name(sender, receiver)
        out.print(f"  {name:<20} {scored.scores[sender, receiver]:+.6g}{within[sender, receiver]}", markup=False)
    cost = f"{run['seconds']:.1f} s"
    if "forward_passes" in run:
        cost = f"{run['forward_passes']} forward and {run['backward_passes']} backward passes, {cost}"
    else:
        cost = f"{scored.num_edges} edges kept, {run['metric']} {run['metric_final']:.6g}; {cost}"
    out.print(f"the best {len(best)} of {len(ranked)} edges; {cost}")
    if record is not None:
        low, middle, high = record["rank_correlation"]
        out.print(
            f"{record['count']} bootstrap replicates: the 95% intervals of {record['excludes_zero']} edges exclude 0; "
            f"rank correlation with all prompts {middle:.3f} ({low:.3f} to {high:.3f})"
        )
