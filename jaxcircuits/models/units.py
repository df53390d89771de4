"""Units at will: one model as coarser or finer nodes. It computes the same; what can be patched alone differs.

| units | a node is |
|---|---|
| `split` | what the architecture says: a head that reads through q, k and v; an MLP |
| `ungrouped` | the same; every head has a key and a value input of its own (the graph of EAP-IG and MIB) |
| `unsplit` | a head that reads once (figure 1 of Conmy et al. 2023) |
| `layers` | all heads of a layer together; an MLP |
| `blocks` | a whole layer |
| `neurons:G`, `neurons:G@L` | as `split`; an MLP is G equal groups of neurons: in all layers, or in layer L alone |
| `neurons@L` | as `split`; each neuron of layer L is one |

Each is a layout and what follows from the model's own `read` and `write`.
"""

import re
from collections.abc import Sequence

from ..layout import MOST_ENTRIES, counts
from .model import AbstractModel
from .neurons import Neurons, num_groups
from .regrouped import Regrouped, Ungrouped, Unsplit, forms
from .spans import NamedSpans, Spanned, checked_names, checked_spans, spans_of
from .whole_layers import Blocks, Layers

SPLIT = "split"

SIMPLE: dict[str, type[Regrouped]] = {"ungrouped": Ungrouped, "unsplit": Unsplit, "layers": Layers, "blocks": Blocks}


def with_units(
    model: AbstractModel, units: str = SPLIT, spans: Sequence[tuple[int, int]] | Sequence[str] | str | None = None
) -> AbstractModel:
    """The model as other units, as the table above says.

    - `spans`: of positions, as [(0, 4), (4, 8)] or "0:4,4:8": what a node writes at those tokens, and at those in none
      of them, are senders apart, `a0.h3@0:4` and `a0.h3@rest`. Or names of spans that the prompts have, each at its own
      tokens (`PromptPairs.spans`), as ["subject", "verb"] or "subject,verb": `a0.h3@subject`.

    Raises ValueError for unknown units, for those that the model has not, and for spans that meet or are beyond it.
    """
    if not hasattr(model, "layout"):
        raise ValueError(f"model: expected a model, as `load(...).model`, got a {type(model).__name__}")
    if not isinstance(units, str):
        raise ValueError(f"units: expected a text such as 'layers', got {units!r:.60}")
    if spans is not None and not isinstance(spans, Sequence):
        raise ValueError(f"spans: expected pairs (first, end), or names, got {spans!r:.60}")
    whole = _of_nodes(model, units)
    if spans is None:
        return whole
    parts = spans_of(spans) if isinstance(spans, str) else tuple(spans)
    if any(isinstance(part, str) for part in parts):
        kind, chosen = NamedSpans, checked_names(parts)
    else:
        pairs = tuple((int(first), int(end)) for first, end in parts)
        kind, chosen = Spanned, checked_spans(pairs, model.max_positions)
    made = kind(whole, whole.units_name, chosen, precision=model.precision, backward=model.backward)
    _check_size(made, f"{units} in {len(chosen)} spans")
    return made


def _of_nodes(model: AbstractModel, units: str) -> AbstractModel:
    form = re.fullmatch(r"(?P<name>[a-z]+)(:(?P<groups>[1-9]\d*))?(@(?P<layer>\d+))?", units)
    name = form["name"] if form else units
    if form is None or not (name in (SPLIT, *SIMPLE) and units == name or name == "neurons" and units != name):
        raise ValueError(
            f"units: expected {SPLIT}, {', '.join(SIMPLE)}, neurons:GROUPS, neurons:GROUPS@LAYER or neurons@LAYER, "
            f"got {units!r}"
        )
    if isinstance(model, Regrouped):
        given = model.units_name if model.spans_text is None else f"{model.units_name} in spans {model.spans_text}"
        raise ValueError(f"units: expected a model as its architecture says, got one as {given}: take its `model`")
    if name == SPLIT:
        return model
    if model.layout.neighbours_only:
        raise ValueError(f"units: a network of units has no others than its own, got {units!r}")
    ports = [port.name for _, own in forms(model.layout) for port in own.ports]
    if name != "blocks" and len(set(ports)) < len(ports):
        raise ValueError(f"units: {units}: layers whose nodes differ (in number, inputs or names) have no others")
    if name in SIMPLE:
        made = SIMPLE[name](model, units, precision=model.precision, backward=model.backward)
    else:
        assert form is not None
        groups, layer = (None if form[part] is None else int(form[part]) for part in ("groups", "layer"))
        count = num_groups(model, groups, layer)
        made = Neurons(model, units, count, layer, precision=model.precision, backward=model.backward)
    _check_size(made, units)
    return model if made.layout == model.layout else made


def _check_size(model: AbstractModel, units: str) -> None:
    senders, receivers = counts(model.layout)
    if senders * receivers > MOST_ENTRIES:
        raise ValueError(f"units: {units}: a mask of {senders} x {receivers} is beyond {MOST_ENTRIES:,} entries")
