"""The table of scoring methods, by name: what each computes, costs, takes and refuses."""

from .atp import atp_star
from .attribution import clean_corrupted, eap, eap_gp, eap_ig_activations, eap_ig_inputs, mask_ig
from .cd_t import cd_t
from .edge_pruning import edge_pruning
from .exact import exact
from .hisp import hisp, node_attribution, node_ig
from .information_flow import information_flow_routes
from .mattr import mattr
from .method import Method
from .peap import peap
from .subnetwork_probing import subnetwork_probing
from .ugs import ugs
from .uniform import random_scores


def by_name(name: str) -> Method:
    """The method of a name. Raises ValueError for an unknown one."""
    if name == PEAP.name:
        raise ValueError(
            "peap has scores of edges between spans as well: only `score --method peap --spans ...` takes it"
        )
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]


FLAT = "KL, L2 to the model's own output (no slope at the clean run) and accuracy"
UNITS = "networks of units"

BY_RULES = {"backward": "plain, relp, attn-lrp or gim: rules of the gradient"}

LEARNING = {"steps": "1 or more", "batch": "1 or more prompts a step, or none: all", "seed": "0 or more"}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "exact",
            exact,
            "f(all but s->r) - f(all)",
            "activation patching, edge by edge",
            "a forward pass an edge, from r on",
            {"width": "1 or more: senders evaluated at once"},
        ),
        Method(
            "eap", eap, "<D_s, g_r(clean)>", "Syed et al., 2310.10348", "1 forward, 1 backward pass", BY_RULES, FLAT
        ),
        Method(
            "clean-corrupted",
            clean_corrupted,
            "<D_s, g_r(clean) + g_r(corrupt)> / 2",
            "Hanna et al., 2403.17806",
            "3 forward, 2 backward passes",
            BY_RULES,
            "references other than resample; accuracy",
        ),
        Method(
            "eap-ig-inputs",
            eap_ig_inputs,
            "mean over k of <D_s, g_r(x_k)>, x_k from the corrupt to the clean embedding",
            "Hanna et al., 2403.17806",
            "m + 1 forward, m backward passes",
            {"steps": "1 or more", "points": "public (k/m, k = 0..m-1) or midpoint ((k + 1/2)/m)", **BY_RULES},
            "references other than resample; accuracy",
        ),
        Method(
            "eap-ig-activations",
            eap_ig_activations,
            "mean over groups of senders and k = 1..m of <D_s, g_r(group held at k/m clean + (1 - k/m) reference)>",
            "Hanna et al., 2403.17806, public code",
            "(2 layers + 1) m + 1 forward, (2 layers + 1) m backward passes",
            {"steps": "1 or more", **BY_RULES},
            "accuracy",
        ),
        Method(
            "eap-gp",
            eap_gp,
            "mean over j = 1..k of <D_s, g_r(y_j)>, y_j from the clean embedding down |logits - corrupt logits|^2",
            "Zhang et al., 2502.06852",
            "2k + 2 forward, 2k backward passes",
            {"steps": "1 or more", **BY_RULES},
            "references other than resample; accuracy",
        ),
        Method(
            "mask-ig",
            mask_ig,
            "mean over k of -df/dmask at mask (k + 1/2)/m everywhere; sums to f(none) - f(all)",
            "integrated gradients, 1703.01365",
            "m forward, m backward passes of the masked model",
            {"steps": "1 or more", **BY_RULES},
            "accuracy",
        ),
        Method(
            "information-flow-routes",
            information_flow_routes,
            "share of s in max(0, |y|_1 - |z_s - y|_1), y what r reads; mean over positions",
            "Ferrando and Voita, 2403.00824",
            "2 forward passes; needs neither metric nor reference",
            {},
            UNITS,
        ),
        Method(
            "cd-t",
            cd_t,
            "mean |rel| / (mean |rel| + mean |irrel|) of what r computes, decomposed from where s wrote rel on",
            "Hsu et al., 2407.00886",
            "a forward pass a sender; needs neither metric nor gradient",
            {"base": "mean (of the clean prompts) or reference: what of z_s is not rel", "width": "1 or more"},
            f"{UNITS}; units layers and blocks",
        ),
        Method(
            "atp-star",
            atp_star,
            "EAP with the attention pattern recomputed for q and k; mean size over runs that drop one layer's gradient",
            "Kramar et al., 2403.00745, edge version",
            "layers + 2 forward, layers backward passes",
            {"qk_fix": "true or false", "grad_drop": "true or false (false: signed scores)", **BY_RULES},
            f"{FLAT}; {UNITS}",
        ),
        Method(
            "hisp",
            hisp,
            "mean of |df/dz_n| of nodes q, k, v, MLP, over the L2 norm of their layer; least of an edge's two nodes",
            "Michel et al., 1905.10650; as in 2304.14997",
            "1 forward, 1 backward pass",
            BY_RULES,
            f"{FLAT}; {UNITS}",
        ),
        Method(
            "node-attribution",
            node_attribution,
            "-df/dz_n at ones, z_n between a node's reference and running output; least of an edge's two nodes",
            "attribution patching of nodes",
            "1 forward, 1 backward pass",
            BY_RULES,
            f"{FLAT}; {UNITS}",
        ),
        Method(
            "node-ig",
            node_ig,
            "mean over k of -df/dz_n at z = (k + 1/2)/m for all nodes; least of an edge's two nodes",
            "integrated gradients, 1703.01365",
            "m forward, m backward passes",
            {"steps": "1 or more", **BY_RULES},
            f"accuracy; {UNITS}",
        ),
        Method(
            "subnetwork-probing",
            subnetwork_probing,
            "hard concrete masks z that minimise f(z) + strength * expected L0; the chance to keep",
            "Cao et al., 2104.03514; as in 2304.14997",
            "a forward and a backward pass a step",
            {
                "strength": "0 or more",
                "on": "nodes or edges",
                "rate": "over 0: Adam's",
                "keep": "0 to 1: every mask at the start",
                **LEARNING,
            },
            f"accuracy; on nodes {UNITS}",
        ),
        Method(
            "edge-pruning",
            edge_pruning,
            "hard concrete masks of edges that minimise f(z) at a given sparsity (Lagrangian); the chance to keep",
            "Bhaskar et al., 2406.16778",
            "a masked forward and backward pass a step",
            {
                "sparsity": "0 to 1.1: of edges",
                "node_sparsity": "0 to 1.1, or none",
                "ramp": "steps in which the target rises, or none: 5/6 of all",
                "warm_up": "steps in which the rate rises, or none: 1/15 of all",
                "rate": "over 0: AdamW's, of masks",
                "multiplier_rate": "over 0: of the Lagrangian's multipliers, or none: as rate",
                "decay": "0 or more: of the parameters",
                **LEARNING,
            },
            "accuracy",
        ),
        Method(
            "ugs",
            ugs,
            "chances to keep, learnt from gradients at masks drawn uniformly, with an L0 penalty",
            "Li and Janson, 2409.09951",
            "`samples` masked forward and backward passes a step",
            {
                "strength": "0 or more: what an edge may cost",
                "rate": "over 0: Adam's",
                "start_at": "log odds of keeping an edge at the start",
                "samples": "1 or more masks a step",
                **LEARNING,
            },
            "accuracy",
        ),
        Method(
            "mattr",
            mattr,
            "a, learnt so that f is low at sigmoid((a - tau)/T) for any number of edges (it sets tau); less min a",
            "Matryoshka Attribution, 2609.25518",
            "a masked forward and backward pass a step",
            {
                "optimiser": "adam, sgd, or none: mean slope at equal masks",
                "rate": "over 0, or none: 0.05 of adam, 3 of sgd",
                "sizes": "uniform or log: how the number of edges is drawn",
                "loss": "objective, or cmd: |1 - faithfulness|",
                "temperature": "over 0: T",
                **LEARNING,
            },
            "accuracy",
        ),
        Method("random", random_scores, "uniform in [0, 1)", "baseline", "nothing", {"seed": "0 or more"}),
    )
}

PEAP = Method(
    "peap",
    peap,
    "EAP of edges within spans; between spans <change of what a head takes from one at another by q, k or v, gradient>",
    "Haklay et al., 2502.04577",
    "2 forward, 2 backward passes, and what every head takes from every position; score --spans alone",
    {},
    f"{FLAT}; models without spans; {UNITS}; heads that meet in a norm",
)
"""Apart from the others: its result is no score of each edge of the graph, but a `Peap`."""
