"""Attribution: scores of all edges from gradients of the one objective.

With `D_s = reference_s - clean_s` (fixed, summed over positions) and `g_r(run) = dL/d(input of r)` in a run:

| method               | score of s->r                                                                   |
|----------------------|---------------------------------------------------------------------------------|
| `eap`                | `<D_s, g_r(clean)>`                                                             |
| `clean_corrupted`    | `<D_s, g_r(clean) + g_r(corrupt)> / 2`                                          |
| `eap_ig_inputs`      | mean over k of `<D_s, g_r(x_k)>`, x_k from the corrupt embedding to the clean   |
| `eap_ig_activations` | mean over groups and k of `<D_s, g_r(run k)>`, run k the clean run with a group |
|                      | of senders held at `k/m clean + (1 - k/m) reference`                            |
| `eap_gp`             | mean over j = 1..k of `<D_s, g_r(y_j)>`, y_j steps from the clean embedding     |
|                      | down the distance of the logits to the corrupt prompt's                         |
| `mask_ig`            | mean over k of `-df/dmask` at `mask = (k + 1/2) / m` everywhere                 |

They are means over prompts; a score above 0 says that removing the edge raises the loss. `backward` names the rules by
which gradients are taken (`models/backward.py`): "plain" are derivatives.
"""

import numpy as np

from ..arguments import check_count, checked
from ..conditional import Conditional
from ..objective import Objective
from ..scores import Scores
from .measure import Positions, refuse_flat, ruled, scored, spans_of

POINTS = ("public", "midpoint")
"""Where on the path: k/m for k = 0..m-1 as EAP-IG's public code, or (k + 1/2)/m."""


@checked
def eap(objective: Objective | Conditional, *, backward: str = "plain", positions: Positions | None = None) -> Scores:
    """Edge attribution patching: `-df/dmask` at ones (Syed et al., 2310.10348), in one backward pass.

    - `positions`: score edges at these token positions or spans, each on its own.

    Raises ValueError where the gradient at the clean run is zero: KL, and L2 to the model's own output.
    """
    own = ruled(objective, backward)
    named, spans = spans_of(objective, positions)
    refuse_flat(objective, "eap")
    return scored(
        objective,
        "eap",
        lambda: -own.clean_gradient(spans=spans),
        passes=(1, 1),
        positions=named,
        backward=backward,
    )


@checked
def clean_corrupted(
    objective: Objective | Conditional, *, backward: str = "plain", positions: Positions | None = None
) -> Scores:
    """EAP at the clean and at the corrupt prompt, averaged; the labels are the clean prompt's at both.

    Under KL the clean end adds nothing. Raises ValueError for another reference than "resample".
    """
    named, spans = spans_of(objective, positions)
    own = ruled(objective, backward)
    refuse_flat(objective, "clean-corrupted", at_clean=False)
    return scored(
        objective,
        "clean-corrupted",
        lambda: -own.along(np.array([0.0, 1.0]), spans=spans),
        passes=(3, 2),
        positions=named,
        backward=backward,
    )


@checked
def eap_ig_inputs(
    objective: Objective | Conditional,
    *,
    steps: int = 5,
    points: str = "public",
    backward: str = "plain",
    positions: Positions | None = None,
) -> Scores:
    """EAP with integrated gradients over the inputs (Hanna et al., 2403.17806).

    - `steps`: m, the number of path points. `points`: "public": k/m for k = 0..m-1, so the pure corrupt prompt is
      one of them and the clean one is not; or "midpoint": (k + 1/2)/m.

    Raises ValueError for another reference than "resample": the path is one of input embeddings.
    """
    check_count("steps", steps, 1)
    m = int(steps)
    if points not in POINTS:
        raise ValueError(f"points: expected one of {', '.join(POINTS)}, got {points!r}")
    own = ruled(objective, backward)
    named, spans = spans_of(objective, positions)
    refuse_flat(objective, "eap-ig-inputs", at_clean=False)
    alphas = (np.arange(m) + (0.5 if points == "midpoint" else 0.0)) / m
    return scored(
        objective,
        "eap-ig-inputs",
        lambda: -own.along(alphas, spans=spans),
        passes=(m + 1, m),
        positions=named,
        steps=m,
        backward=backward,
        points=points,
    )


@checked
def eap_ig_activations(
    objective: Objective | Conditional, *, steps: int = 5, backward: str = "plain", positions: Positions | None = None
) -> Scores:
    """EAP with integrated gradients over activations (Hanna et al., 2403.17806), as its public code does it.

    - `steps`: m points `k/m`, k = 1..m, for each group: the embedding, the heads of each layer, each MLP. A held
      group is a constant: no gradient passes it. Every edge gets the gradient of every run.
    """
    check_count("steps", steps, 1)
    m = int(steps)
    own = ruled(objective, backward)
    named, spans = spans_of(objective, positions)
    refuse_flat(objective, "eap-ig-activations", at_clean=False)
    groups = objective.graph.sender_groups
    held = np.repeat(groups, m, axis=0)
    alphas = np.tile(np.arange(1, m + 1) / m, len(groups))
    return scored(
        objective,
        "eap-ig-activations",
        lambda: -own.displacement_gradient(held, alphas, spans=spans),
        passes=(len(alphas) + 1, len(alphas)),
        positions=named,
        steps=m,
        backward=backward,
        points="k/m, k = 1..m",
    )


@checked
def eap_gp(
    objective: Objective | Conditional, *, steps: int = 5, backward: str = "plain", positions: Positions | None = None
) -> Scores:
    """EAP with the gradients of a path that follows the model instead of a straight line (EAP-GP, 2502.06852).

    `y_j = y_(j-1) - v / |v|` from the clean embedding y_0, v the derivative at y_(j-1) of
    `|logits(y) - logits(corrupt)|^2`, summed over a prompt's tokens; `|v|` over its tokens and channels. A step has
    length 1 whatever the size of the embeddings. The authors published no code.

    - `steps`: k, the number of points: y_1 to y_k. `backward`: the rules of `g`; v is always the derivative.

    Without some edges all runs are without them; the corrupt prompt's logits stay, as these edges carry its values.

    Raises ValueError for another reference than "resample": the path goes towards the corrupt prompt.
    """
    check_count("steps", steps, 1)
    k = int(steps)
    own = ruled(objective, backward)
    named, spans = spans_of(objective, positions)
    refuse_flat(objective, "eap-gp", at_clean=False)
    return scored(
        objective,
        "eap-gp",
        lambda: -own.down_path(k, spans=spans),
        passes=(2 * k + 2, 2 * k),
        positions=named,
        steps=k,
        backward=backward,
    )


@checked
def mask_ig(
    objective: Objective | Conditional, *, steps: int = 10, backward: str = "plain", positions: Positions | None = None
) -> Scores:
    """Integrated gradients of `f` itself on the straight way from no edges to all of them, at midpoints.

    Complete: with many steps the scores sum to `f(zeros) - f(ones)`. It is not EAP-IG, whose displacements are
    constants.
    """
    check_count("steps", steps, 1)
    m = int(steps)
    own = ruled(objective, backward)
    named, spans = spans_of(objective, positions)
    refuse_flat(objective, "mask-ig", at_clean=False)
    shape = objective.graph.shape

    def values() -> np.ndarray:
        total = 0.0
        for alpha in (np.arange(m) + 0.5) / m:
            total = total - np.asarray(own.gradient(np.full(shape, alpha), spans=spans), np.float64)
        return np.asarray(total) / m

    points = "(k + 1/2)/m, k = 0..m-1"
    return scored(
        objective, "mask-ig", values, passes=(m, m), positions=named, steps=m, backward=backward, points=points
    )
