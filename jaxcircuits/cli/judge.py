"""`evaluate`, `test` and `compare`: what a circuit is worth."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..circuit import Circuit, could_be_in
from ..conditional import without
from ..discovery import acdc, methods
from ..evaluation import (
    Ablated,
    Paired,
    ablated,
    evaluate,
    hypothesis_tests,
    paired,
    similarity,
)
from ..evaluation.ablation import CHOICES
from ..models.reset import reset_network
from ..objective import Objective
from ..precision import PRECISIONS
from ..run import extended
from .config import Context, config_of
from .judged_lines import print_evaluation, print_paired, print_similarity, print_tests
from .options import (
    Cache,
    Checkpoint,
    Config,
    Devices,
    SplitWeights,
    check_fillable,
    check_writable,
    err,
    named_in,
    out,
    recorded,
    span_of,
    takes_groups,
    warnings_as_lines,
)

File = Annotated[Path, typer.Argument(help="a circuit or scores: JSON of this library, MIB or EAP-IG")]
Random = Annotated[int, typer.Option(help="random circuits of the same size to compare with")]
Width = Annotated[int, typer.Option(help="circuits evaluated at once")]
Out = Annotated[Path | None, typer.Option("--out", help="write the record to this JSON file")]


class JudgedOptions(NamedTuple):
    """`PromptOptions` with a task, all by default as the circuit's record says."""

    task: Annotated[str | None, typer.Option(help="a built-in task or a file of prompts; default: the circuit's")] = (
        None
    )
    model: Annotated[
        str | None, typer.Option(help="a bundled model, a folder, or a hub name; default: the circuit's")
    ] = None
    metric: Annotated[str | None, typer.Option(help="default: the circuit's, or logit_diff")] = None
    reference: Annotated[
        str | None, typer.Option(help="what absent edges carry; default: the circuit's, or resample")
    ] = None
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; default: the circuit's")] = None
    precision: Annotated[
        str | None, typer.Option(help=f"of products: {', '.join(PRECISIONS)}; default: the circuit's")
    ] = None
    size: Annotated[int | None, typer.Option(help="prompts; default: the circuit's")] = None
    seed: Annotated[int | None, typer.Option(help="of the prompts and of what is drawn; default: the circuit's")] = None
    average: Annotated[
        str | None, typer.Option(help="several scored positions: together or per_prompt; default: the circuit's")
    ] = None
    devices: Devices = 1
    split_weights: SplitWeights = 1
    cache: Cache = None
    bos: Annotated[bool | None, typer.Option("--bos/--no-bos", help="begin with BOS; default: the circuit's")] = None
    template: Annotated[str | None, typer.Option(help="of a chat; default: the circuit's")] = None
    units: Annotated[str | None, typer.Option(help="what the nodes are; default: the circuit's")] = None
    spans: Annotated[str | None, typer.Option(help="as 0:4,4:8 or subject,verb; default: the circuit's")] = None


def _choice(part: str) -> Any:
    return typer.Option(help=f"of the ablation: {', '.join(CHOICES[part])}")


class AblationOptions(NamedTuple):
    """What is replaced in a judged circuit's run."""

    granularity: Annotated[str, _choice("granularity")] = "edge"
    component: Annotated[str, _choice("component")] = "all"
    positions: Annotated[
        str, typer.Option(help="of the ablation: all, or tokens and spans before their end, as 3:7 or 1,3:7")
    ] = "all"
    direction: Annotated[str, _choice("direction")] = "ablate"
    ablated_set: Annotated[str, typer.Option("--set", help="what runs: circuit, complement")] = "circuit"


class TestOptions(NamedTuple):
    """What `hypothesis_tests` takes."""

    level: Annotated[float, typer.Option(help="of each test")] = 0.05
    epsilon: Annotated[float, typer.Option(help="of equivalence: how far from 1/2 counts as the same")] = 0.1
    share: Annotated[float, typer.Option(help="of random circuits that the circuit must beat")] = 0.9
    random: Random = 100
    permutations: Annotated[int, typer.Option(help="of the test of independence")] = 1000


@takes_groups
def evaluate_circuit(
    ctx: Context,
    file: File,
    options: JudgedOptions = JudgedOptions(),
    ablation: AblationOptions = AblationOptions(),
    controls: Annotated[bool, typer.Option(help="random circuits, and the method on a reset network")] = True,
    random: Random = 100,
    rediscover: Annotated[
        bool, typer.Option("--rediscover", help="run the method again without the circuit's edges, and judge that")
    ] = False,
    width: Width = 16,
    checkpoint: Checkpoint = None,
    config: Config = None,
    out_file: Out = None,
) -> None:
    """Judges a circuit, or scores: faithfulness, its curve, completeness, with controls beside them."""
    check_writable(file, config, options.task, options.model, out=out_file)
    check_fillable(checkpoint=checkpoint)
    circuit = Circuit.load(file)
    check_writable(*named_in(circuit.run), out=out_file)
    asked = _Asked(circuit, options)
    parts = ablation._asdict()
    parts["set"] = parts.pop("ablated_set")
    if ablation.positions != "all":
        parts["positions"] = [span_of(part) for part in ablation.positions.split(",")]
    method = _method_of(circuit, checkpoint) if controls else None
    again = _method_of(circuit, checkpoint, "without") if rediscover else None
    if rediscover and (again is None or circuit.num_edges == circuit.graph.num_edges):
        raise ValueError("--rediscover: expected a circuit of some of the edges, whose file says by which method")
    if controls and method is None:
        err.print("warning: the file does not say which method to run on a reset network: no such control")
    with warnings_as_lines():
        judged, run = asked.objective(width=width, **parts)
        reset = None if method is None else asked.reset(width=width, **parts)
        method = None if reset is None else method
        seed = asked.options.seed
        taken = {"random": random * controls, "reset": reset, "method": method, "seed": seed}
        record = evaluate(judged, circuit, **taken, rediscovered=again, checkpoint=checkpoint)
    record = dataclasses.replace(record, run=extended(record.run, {**run, "config": config_of(ctx)}))
    print_evaluation(record)
    _save(record, out_file)


@takes_groups
def test_circuit(
    ctx: Context,
    file: File,
    options: JudgedOptions = JudgedOptions(),
    tests: TestOptions = TestOptions(),
    width: Width = 16,
    checkpoint: Checkpoint = None,
    config: Config = None,
    out_file: Out = None,
) -> None:
    """Tests five hypotheses about a circuit (Shi et al., 2410.13032)."""
    check_writable(file, config, options.task, options.model, out=out_file)
    check_fillable(checkpoint=checkpoint)
    circuit = Circuit.load(file)
    check_writable(*named_in(circuit.run), out=out_file)
    asked = _Asked(circuit, options)
    with warnings_as_lines():
        judged, run = asked.objective(width=width)
        record = hypothesis_tests(judged, circuit, seed=asked.options.seed, checkpoint=checkpoint, **tests._asdict())
    record = dataclasses.replace(record, run=extended(record.run, {**run, "config": config_of(ctx)}))
    print_tests(record)
    _save(record, out_file)


@takes_groups
def compare(
    first: Annotated[Path, typer.Argument(help="a circuit or scores")],
    second: Annotated[Path, typer.Argument(help="another one of the same graph")],
    on_prompts: Annotated[
        bool,
        typer.Option("--paired", help="judge both on the prompts of the first, and test the difference"),
    ] = False,
    options: JudgedOptions = JudgedOptions(),
    out_file: Out = None,
) -> None:
    """Compares two circuits: shared edges and nodes, and how alike their scores rank; or their losses (--paired)."""
    check_writable(first, second, options.task, options.model, out=out_file)
    circuits = Circuit.load(first), Circuit.load(second)
    check_writable(*named_in(*(circuit.run for circuit in circuits)), out=out_file)
    if on_prompts:
        return _save(_judged_together(*circuits, options), out_file)
    if given := [name for name, value in options._asdict().items() if value != JudgedOptions._field_defaults[name]]:
        raise ValueError(f"--{given[0].replace('_', '-')}: circuits alone are compared; give --paired to judge them")
    record = similarity(*circuits)
    print_similarity(record)
    _save(record, out_file)


def _judged_together(first: Circuit, second: Circuit, options: JudgedOptions) -> Paired:
    """Judges and prints."""
    with warnings_as_lines():
        judged, _ = _Asked(first, options).objective()
        _warn_of_weights(second)
        record = paired(judged, first, second, seed=options.seed or 0)
    print_paired(record)
    return record


# --- what a file says about how it was found ------------------------------------------------------


def _warn_of_weights(circuit: Circuit) -> None:
    """Says that a circuit is judged on other prompts than it was found on, if its record says so."""
    weights = circuit.run.get("prompt_weights", [])
    if len(set(weights)) > 1:
        counted = sum(weight > 0 for weight in weights)
        err.print(
            f"warning: the circuit was found on {counted} of {len(weights)} prompts, weighed unequally: "
            "it is judged on all of them alike"
        )


class _Asked:
    """The objective that options and a circuit's record name together; what is typed goes first."""

    def __init__(self, circuit: Circuit, options: JudgedOptions) -> None:
        self.recorded = recorded(circuit.run, options)
        self.options = self.recorded.options
        _warn_of_weights(circuit)

    def objective(self, *, reset: bool = False, **ablation: Any) -> tuple[Ablated, dict[str, Any]]:
        """The objective under an ablation, on the model or on its reset network; and its record."""
        change = (lambda model: reset_network(model, self.options.seed)) if reset else None
        objective, run, pairs, _ = self.recorded.load(change)
        return ablated(objective, pairs=pairs, **ablation), run

    def reset(self, **ablation: Any) -> Ablated | None:
        """The same on the reset network; None, with a warning, where the model has nothing to permute."""
        try:
            return self.objective(reset=True, **ablation)[0]
        except ValueError as error:  # of the network alone: the model's own objective was made before
            err.print(f"warning: {error}: no such control", markup=False)
            return None


def _method_of(circuit: Circuit, checkpoint: Path | None = None, folder: str = "reset") -> Callable[[Any], Any] | None:
    """The method that found a circuit, with its hyperparameters, if its record names one; kept in a folder within."""
    run, name = circuit.run, circuit.run.get("method")
    kept = {} if checkpoint is None else {"checkpoint": checkpoint / folder}
    if name == "acdc" and "threshold" in run and "edges_within" not in run:  # of which it says the number alone
        taken = {key: run[key] for key in ("order", "head_order", "groups", "absolute") if key in run}
        taken["seed"] = run.get("order_seed", 0)
        weighed = run.get("prompt_weights")

        def search(objective: Objective) -> Any:
            if weighed is not None and len(weighed) != objective.num_prompts:
                raise ValueError(
                    f"the circuit was found on {len(weighed)} weighed prompts, got {objective.num_prompts}: the same "
                    "method does not run on them; leave out --size, or give --no-controls"
                )
            return acdc(objective, float(run["threshold"]), prompt_weights=weighed, **taken, **kept)

        return search
    is_earlier = "edges_within" in run and not {"within", "without"} & run.keys()
    if name not in methods.METHODS or is_earlier or "conditional" in run:  # a change of scores is no method's own
        return None
    method, absent = methods.METHODS[name], circuit.graph.valid & ~could_be_in(circuit)
    taken = {key: run[key] for key in method.defaults if key in run} | (kept if method.takes_checkpoint else {})
    if not (method.takes_positions and "positions" in run):
        return lambda objective: method.run(without(objective, absent), **taken)

    def at_positions(objective: Objective) -> Any:
        scores: Any = method.run(without(objective, absent), **taken, positions=run["positions"])
        return scores.at(0)

    return at_positions


def _save(record: Any, path: Path | None) -> None:
    if path is not None:
        record.save(path)
        out.print(f"written to {path}", markup=False)
