"""Every family against transformers' own: logits, edge scores by hooks on its modules, and which config keys matter."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn
from test_checkpoints import assert_equal_models

import jaxcircuits as jc
from jaxcircuits.formats import FAMILIES, FIXED_KEYS, IGNORED_KEYS, config_of
from jaxcircuits.models.rotary import rotation

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch.overrides import TorchFunctionMode  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])
SMALL = dict(
    vocab_size=11, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=6,
    max_position_embeddings=16,
)  # fmt: skip
RMS = SMALL | dict(rms_norm_eps=1e-3)
LLAMA3 = dict(
    rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position_embeddings=12
)
YARN = dict(rope_type="yarn", factor=3.0, original_max_position_embeddings=8, beta_fast=4.0, beta_slow=0.5)
GEMMA = RMS | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=5)


def rope(theta, **scaling):
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling}}


CASES = {
    "llama-linear": ("Llama", RMS | rope(50.0, rope_type="linear", factor=2.5) | dict(num_key_value_heads=2)),
    "llama-3": ("Llama", RMS | rope(500.0, **LLAMA3) | dict(num_key_value_heads=3, tie_word_embeddings=True)),
    "llama-dynamic-biases": (
        "Llama", RMS | rope(30.0, rope_type="dynamic", factor=2.0) | dict(attention_bias=True, mlp_bias=True),
    ),
    "llama-yarn": ("Llama", RMS | rope(60.0, **YARN) | dict(num_key_value_heads=3, head_dim=10)),
    "llama-yarn-mscale": ("Llama", RMS | rope(60.0, **YARN, mscale=0.7, mscale_all_dim=1.2, truncate=False)),
    "mistral": ("Mistral", RMS | rope(70.0) | dict(num_key_value_heads=2, sliding_window=5)),
    "mistral-no-window": ("Mistral", RMS | rope(70.0) | dict(num_key_value_heads=6, sliding_window=None)),
    "qwen2": ("Qwen2", RMS | rope(40.0) | dict(num_key_value_heads=2)),
    "qwen2-window": (
        "Qwen2",
        RMS | rope(40.0) | dict(num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    "qwen2-windows": (
        "Qwen2",
        RMS | rope(40.0) | dict(num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ),
    "qwen3": ("Qwen3", RMS | rope(90.0) | dict(num_key_value_heads=3, head_dim=6, tie_word_embeddings=True)),
    "qwen3-biases": ("Qwen3", RMS | rope(90.0) | dict(num_key_value_heads=6, head_dim=4, attention_bias=True)),
    "olmo2": ("Olmo2", RMS | rope(80.0) | dict(num_key_value_heads=2)),
    "olmo2-ungrouped": ("Olmo2", RMS | rope(80.0)),
    "neox": ("GPTNeoX", SMALL | rope(25.0, partial_rotary_factor=0.5) | dict(layer_norm_eps=1e-3)),
    "neox-sequential": (
        "GPTNeoX",
        SMALL | rope(25.0, rope_type="linear", factor=2.0, partial_rotary_factor=1.0)
        | dict(use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new", tie_word_embeddings=True),
    ),
    "gemma2": ("Gemma2", GEMMA | rope(35.0) | dict(num_key_value_heads=2, final_logit_softcapping=2.0,
                                                    attn_logit_softcapping=1.5)),
    "gemma3": (
        "Gemma3Text",
        GEMMA | dict(
            num_key_value_heads=3,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 400.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        ),
    ),
}  # fmt: skip


class InDouble(TorchFunctionMode):
    """Where transformers computes in float32 whatever the weights (norms, softmax, rotations), float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def theirs(name):
    """transformers' model in float64, every weight random: no term is trivially 0 or 1."""
    kind, values = CASES[name]
    config = getattr(transformers, f"{kind}Config")(**values)
    kind = kind.replace("Gemma3Text", "Gemma3")
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        config._attn_implementation = "eager"
        with InDouble():
            model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.25 * torch.randn_like(weight))
    return model


def logits_of(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.tensor(tokens[None])).logits[0].numpy()


MISSION, QUICK = pytest.mark.mission, ("llama-3", "gemma2")
IN_SINGLE = {"llama-3", "mistral", "qwen2", "qwen3", "olmo2", "neox", "gemma2", "gemma3"}


def run(model):
    return np.asarray(eqx.filter_jit(model)(jnp.asarray(TOKENS, jnp.int32)))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[MISSION] * (name not in QUICK)) for name in CASES])
def test_logits_equal_those_of_transformers(name, tmp_path, x64):
    """Law 6: float64 to 1e-9, float32 to 2e-5; and what this library saves, transformers loads."""
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    ours = jc.load(tmp_path / "theirs", dtype="float64").model
    jc.save(ours, tmp_path / "ours")
    loader, options = transformers.AutoModelForCausalLM, {"attn_implementation": "eager"}
    with InDouble():
        double = logits_of(model)
        again, report = loader.from_pretrained(
            tmp_path / "ours", dtype=torch.float64, output_loading_info=True, **options
        )
        assert not any(report.values()) and np.abs(logits_of(again) - double).max() <= 1e-12
    assert double.std() > 0.2 and np.abs(run(ours) - double).max() <= 1e-9
    assert_equal_models(jc.load(tmp_path / "ours", dtype="float64").model, ours)
    if name in IN_SINGLE:
        single = logits_of(loader.from_pretrained(tmp_path / "theirs", dtype=torch.float32, **options))
        assert np.abs(run(jc.load(tmp_path / "theirs").model) - single).max() <= 2e-5


# --- scores ----------------------------------------------------------------------------------------


def torch_scores(model, clean, corrupt, answer, wrong):
    """EAP by hooks on transformers' modules: {(sender, receiver): score} of one prompt."""
    config, layers = model.config, model.model.layers
    width, heads, groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads

    def recorded(tokens):
        kept, hooks = {}, []

        def keep(name, module, is_input=False):
            def hook(module, args, output):
                kept[name] = args[0] if is_input else output
                kept[name].retain_grad()

            hooks.append(module.register_forward_hook(hook))

        keep("input", model.model.embed_tokens)
        keep("logits", model.model.norm, is_input=True)
        for number, layer in enumerate(layers):
            keep((number, "x"), layer.input_layernorm, is_input=True)
            keep((number, "middle"), layer.post_attention_layernorm, is_input=True)
            for letter in "qkv":
                keep((number, letter), getattr(layer.self_attn, f"{letter}_proj"))
            keep((number, "z"), layer.self_attn.o_proj, is_input=True)
            keep((number, "m"), layer.mlp)
        logits = model(torch.tensor(tokens[None])).logits[0, -1]
        (logits[wrong] - logits[answer]).backward()
        for hook in hooks:
            hook.remove()
        return kept

    def writes(kept):
        values = {"input": kept["input"]}
        for number, layer in enumerate(layers):
            for head in range(heads):
                own = slice(head * width, (head + 1) * width)
                z = kept[number, "z"][..., own] @ layer.self_attn.o_proj.weight[:, own].T
                values[f"a{number}.h{head}"] = z
            values[f"m{number}"] = kept[number, "m"]
        return values

    def pulled(modules, x, slope):
        x = x.detach().requires_grad_()
        y = x
        for module in modules:
            y = module(y)
        return torch.autograd.grad(y, x, slope)[0]

    kept = recorded(clean)
    slopes = {"logits": kept["logits"].grad}
    for number, layer in enumerate(layers):
        for letter, count in (("q", heads), ("k", groups), ("v", groups)):
            slope = kept[number, letter].grad
            for index in range(count):
                own = torch.zeros_like(slope)
                own[..., index * width : (index + 1) * width] = slope[..., index * width : (index + 1) * width]
                modules = layer.input_layernorm, getattr(layer.self_attn, f"{letter}_proj")
                name = f"a{number}.{'h' if letter == 'q' else 'g'}{index}<{letter}>"
                slopes[name] = pulled(modules, kept[number, "x"], own)
        modules = layer.post_attention_layernorm, layer.mlp
        slopes[f"m{number}"] = pulled(modules, kept[number, "middle"], kept[number, "m"].grad)
    here, there = writes(kept), writes(recorded(corrupt))
    return {(s, r): float(((there[s] - here[s]) * slopes[r]).sum()) for s in here for r in slopes}


@MISSION
def test_scores_of_a_grouped_model_equal_those_by_hooks_on_transformers_modules(tmp_path, x64):
    """EAP to 1e-9 of the largest; and a group's scores are the sums of its heads' where each has a key of its own."""
    model = theirs("qwen3")
    model.save_pretrained(tmp_path / "model")
    ours = jc.load(tmp_path / "model", dtype="float64").model
    clean, corrupt = np.stack([TOKENS, (TOKENS + 1) % 11]), np.stack([(3 * TOKENS) % 11, (TOKENS + 4) % 11])
    pairs = jc.PromptPairs(clean=clean, corrupt=corrupt, answer=np.array([[7], [2]]), wrong=np.array([[3], [9]]))
    scores = jc.eap(jc.Objective(ours, pairs, "logit_diff"))
    with InDouble():
        labels = zip(clean, corrupt, pairs.answer[:, 0], pairs.wrong[:, 0], strict=True)
        each = [torch_scores(model, *(np.asarray(x) for x in prompt)) for prompt in labels]
    graph, values = ours.graph, np.asarray(scores.values)
    expected = {
        (s, r): np.mean([one[graph.senders[s], graph.receivers[r]] for one in each])
        for s, r in np.argwhere(graph.valid)
    }
    largest = max(map(abs, expected.values()))
    assert max(abs(values[edge] - score) for edge, score in expected.items()) <= 1e-9 * largest

    def repeated(x):
        return jnp.repeat(x, 2, axis=1)

    at = lambda m: [m.blocks.attention.key, m.blocks.attention.value]  # noqa: E731
    wide = eqx.tree_at(at, ours, list(map(repeated, at(ours))))
    config = dataclasses.replace(ours.config, num_key_value_heads=6)
    ungrouped = jc.eap(jc.Objective(dataclasses.replace(wide, config=config), pairs, "logit_diff"))
    column = ungrouped.graph.receivers.index
    for number, name in enumerate(graph.receivers):
        if ".g" in name:
            layer, group, port = name[1], int(name[4]), name[6]
            columns = [column(f"a{layer}.h{head}<{port}>") for head in (2 * group, 2 * group + 1)]
            sums = np.asarray(ungrouped.values)[:, columns].sum(1)
            np.testing.assert_allclose(values[:, number], sums, rtol=0, atol=1e-12 * largest)


@MISSION
@pytest.mark.parametrize("name", ["olmo2", "neox", "gemma3"])
def test_a_family_keeps_the_laws_of_masks(name, x64):
    """All edges: the clean run; none: the corrupt one; EAP: minus the gradient of the masked run at ones."""
    kind, values = CASES[name]
    family, config = config_of(getattr(transformers, f"{kind}Config")(**values).to_dict())
    model = drawn(eqx.filter_eval_shape(family.model.random, config, jax.random.key(0), jnp.float64), 0)
    clean, corrupt = (TOKENS[:5][None] * factor % 11 for factor in (1, 4))
    pairs = jc.PromptPairs(clean=clean, corrupt=corrupt, answer=np.array([[7]]), wrong=np.array([[3]]))
    objective, tokens = jc.Objective(model, pairs, "logit_diff"), jnp.asarray(clean[0], jnp.int32)
    reference = eqx.filter_jit(model.sender_values)(jnp.asarray(corrupt[0], jnp.int32))

    @eqx.filter_jit
    def loss(mask):
        logits = model.unembed(model.residual(tokens, mask, reference)[-1])
        return logits[3] - logits[7], logits

    shape = model.graph.shape
    (_, ones), gradient = eqx.filter_jit(jax.value_and_grad(loss, has_aux=True))(jnp.ones(shape))
    plain = eqx.filter_jit(model)
    np.testing.assert_allclose(ones, plain(tokens)[-1], rtol=1e-11, atol=1e-11)
    none = loss(jnp.zeros(shape))[1]
    np.testing.assert_allclose(none, plain(jnp.asarray(corrupt[0], jnp.int32))[-1], rtol=1e-11, atol=1e-11)
    valid = model.graph.valid
    np.testing.assert_allclose(np.asarray(jc.eap(objective).values)[valid], -gradient[valid], rtol=1e-9, atol=1e-11)


def test_patterns_are_those_of_transformers(tmp_path, x64):
    """Of joint heads too, which are computed together."""
    for name in ("mistral", "olmo2"):
        model = theirs(name)
        model.save_pretrained(tmp_path / name)
        ours = jc.load(tmp_path / name, dtype="float64").model
        with InDouble(), torch.no_grad():
            expected = model(torch.tensor(TOKENS[None]), output_attentions=True).attentions
        patterns = eqx.filter_jit(ours.attention_patterns)(jnp.asarray(TOKENS, jnp.int32))
        np.testing.assert_allclose(patterns, np.concatenate(expected), rtol=0, atol=1e-12)


# --- configs ---------------------------------------------------------------------------------------

KINDS = [kind for kind in FAMILIES if kind not in ("gpt2", "tracr")]


def their_config(kind, **values):
    return transformers.AutoConfig.for_model(kind, **values)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_family_is_known_and_has_transformers_default(kind):
    """All keys are honoured, refused at other values, or on the list of those that change nothing."""
    ours, told = (config_of({"model_type": kind, **values})[1] for values in ({}, their_config(kind).to_dict()))
    for derived in ("head_width", "num_groups", "windows"):  # which transformers writes out where they are None
        assert getattr(ours, derived) == getattr(told, derived)
    derived = {key: None for key, value in vars(ours).items() if value is None}
    if ours.windows is None and hasattr(ours, "sliding_window"):
        derived["sliding_window"] = ours.sliding_window
    assert dataclasses.replace(told, **derived) == ours


ODD = {
    **{"attn_implementation": "eager", "_attn_implementation": "eager", "dtype": "float32", "torch_dtype": "float32"},
    **{"assistant_ensemble_weight": 0.5, "cache_implementation": "static"},
    **{key: 0.5 for key in IGNORED_KEYS if key.endswith(("dropout", "_pdrop", "_dropout_prob"))},
}
"""Where not any value will do; there is none for the keys of `NEVER_ASKED` that a file could hold."""

NEVER_ASKED = {"model_type", "compile_config", "watermarking_config"}


def odd_values(kind, known):
    """Of every ignored key, another value than its default, of a type that transformers takes."""
    odd = {}
    for key in IGNORED_KEYS - NEVER_ASKED:
        for value in (ODD.get(key, 3), 0.5, True, False, "odd", ["odd"], {"0": "odd"}):
            try:
                their_config(kind, **{key: value})
            except Exception:
                continue
            if value != known.get(key):
                odd[key] = value
                break
    assert odd.keys() == IGNORED_KEYS - NEVER_ASKED
    return odd


@pytest.mark.parametrize("kind", ["gpt2", *KINDS])
def test_all_ignored_keys_together_change_no_logit(kind):
    small = RMS | dict(sliding_window=4, layer_norm_eps=1e-3, num_key_value_heads=1, head_dim=8, num_attention_heads=3)
    if kind == "gpt2":
        small = dict(vocab_size=11, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    known = their_config(kind).to_dict()
    small = {key: value for key, value in small.items() if key in known}
    if kind.startswith("gemma"):
        small["layer_types"] = [("sliding_attention", "full_attention")[layer % 2] for layer in range(3)]
    odd = odd_values(kind, known)
    assert not odd.keys() & (FIXED_KEYS.keys() | FAMILIES[kind].fixed.keys())
    config_of({**their_config(kind, **small).to_dict(), **odd})
    one, other = (
        transformers.AutoModelForCausalLM.from_config(their_config(kind, **small, **values)).eval()
        for values in ({}, odd)
    )
    other.load_state_dict(one.state_dict())
    expected = logits_of(one)
    np.testing.assert_allclose(logits_of(other), expected, rtol=0, atol=5e-7)  # attention is computed otherwise
    assert np.abs(expected).max() > 0.05


@pytest.mark.parametrize("kind", ["gpt2", *KINDS])
def test_what_transformers_writes_and_settings_of_generation_are_read(kind, tmp_path):
    their_config(kind).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    expected = config_of(written)[1]
    whole = json.loads(their_config(kind).to_json_string(use_diff=False))
    generation = transformers.GenerationConfig().to_dict()
    assert config_of({**whole, **generation})[1] == config_of({**generation, **written})[1] == expected
    assert generation.keys() - {"transformers_version"} <= IGNORED_KEYS


@pytest.mark.parametrize(
    "kind, values, message",
    [
        ("llama", {"rope_interleaved": True}, "rope_interleaved = True is not supported; expected False"),
        ("llama", {"rotary_pct": 0.5}, "unknown key 'rotary_pct'"),
        ("llama", {"rms_norm_eps": 0.0}, "rms_norm_eps = 0.0 is not supported; expected a number above 0"),
        ("qwen2", {"rope_theta": -1}, "rope_theta = -1 is not supported; expected a number above 0"),
        ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping = 0 is not supported"),
        ("gpt_neox", {"rotary_pct": 1e308}, "partial_rotary_factor = 1e.308 is not supported; .* above 0, at most 1"),
        ("gpt_neox", {"layer_norm_eps": -1e-5}, "layer_norm_eps = -1e-05 is not supported"),
        ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type 'longrope'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor: expected at least 1, got 0.5"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "misses factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 3}}, "beta_fast would have no effect"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 2}}, "expected 0 < low_freq_factor < high_freq_factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "ntk": 3}}, "rope_scaling: unknown key 'ntk'"),
        *(
            ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, **odd}}, f"rope_scaling: .*{next(iter(odd))}")
            for odd in (
                {"original_max_position_embeddings": 0},
                {"original_max_position_embeddings": -8},
                {"attention_factor": -1.0},
                {"beta_fast": -3.0},
                {"mscale": -1.0},
            )
        ),
        ("gemma3_text", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'type' has no effect in a Gemma 3"),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "'truncate' has no effect in a Gemma 3",
        ),
        ("llama", {"rope_scaling": 2.0}, "rope_scaling = 2.0 is not supported; expected a mapping"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not supported"),
        ("llama", {"num_key_value_heads": 5}, "num_attention_heads 32 must be a multiple of num_key_value_heads 5"),
        ("llama", {"hidden_size": 100}, "hidden_size 100 must be a multiple of num_attention_heads 32"),
        ("llama", {"head_dim": 5}, "entries of a query turn in pairs, got 5"),
        ("llama", {"hidden_act": "snake"}, "activation 'snake' is not supported"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers must be a positive whole number, got 0"),
        ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5' is not supported"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers must be 0 or more, got -1"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be a positive whole number, got 0"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 32}, "layer_types: expected 32 of full_attention"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 32}, "layer_types has sliding_attention, which needs"),
        ("olmo2", {"attention_bias": True}, "attention_bias = True is not supported; expected False"),
        ("gpt_neox", {"rope_theta": 5.0}, "unknown key 'rope_theta'; a GPT-NeoX has rotary_emb_base"),
        ("gpt_neox", {"partial_rotary_factor": 0.5}, "unknown key 'partial_rotary_factor'; a GPT-NeoX has rotary_pct"),
        ("qwen2", {"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "unknown key 'full_attention'"),
        ("llama", {"rope_parameters": {"theta": 1e6}}, "rope_scaling: unknown key 'theta'"),
        ("gpt_neox", {"num_key_value_heads": 4}, "num_key_value_heads = 4 is not supported; expected None"),
        ("gpt_neox", {"rotary_pct": 0.01}, "entries of a query turn in pairs, got 0"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping = 5.0 is not supported"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 5.0}}, "expected those of full_attention and sliding"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_its_key(kind, values, message):
    with pytest.raises(ValueError, match=message):
        config_of({"model_type": kind, **values})


def test_a_range_of_yarn_that_is_truncated_to_null_is_not_truncated():
    config = transformers.LlamaConfig(**SMALL, **rope(60.0, **YARN, truncate=None))
    theirs, scale = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu")
    ours = config_of({"model_type": "llama", **config.to_dict()})[1]
    assert ours.rope_scaling.truncate is False
    turns = rotation(1, SMALL["hidden_size"] // SMALL["num_attention_heads"], 60.0, ours.rope_scaling)
    np.testing.assert_allclose(turns.frequencies[0], theirs.numpy(), rtol=1e-6)
    np.testing.assert_allclose(turns.scales, scale, rtol=1e-6)
    default = config_of({"model_type": "llama", **SMALL, **rope(60.0, **YARN)})[1]
    linear = config_of({"model_type": "llama", **SMALL, **rope(60.0, rope_type="linear", factor=2.0, truncate=None)})[1]
    assert default.rope_scaling.truncate is linear.rope_scaling.truncate is None


def test_positions_are_read_as_older_and_newer_configs_spell_them():
    scaling = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 12}
    old = {"rope_theta": 7.0, "rope_scaling": {"type": "llama3", **scaling}}
    new = {"rope_parameters": {"rope_theta": 7.0, "rope_type": "llama3", **scaling}}
    assert config_of({"model_type": "llama", **old}) == config_of({"model_type": "llama", **new})
    with pytest.raises(ValueError, match="expected rope_parameters or rope_scaling, got both"):
        config_of({"model_type": "llama", **old, **new})
    old = {"rotary_emb_base": 7, "rotary_pct": 0.5}
    new = {"rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5, "rope_type": "default"}}
    assert config_of({"model_type": "gpt_neox", **old}) == config_of({"model_type": "gpt_neox", **new})
    old = {"rope_theta": 7.0, "rope_local_base_freq": 3.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    far, near = {"rope_theta": 7.0, "rope_type": "linear", "factor": 8.0}, {"rope_theta": 3.0, "rope_type": "default"}
    new = {"rope_parameters": {"full_attention": far, "sliding_attention": near}}
    assert config_of({"model_type": "gemma3_text", **old}) == config_of({"model_type": "gemma3_text", **new})


# --- files -----------------------------------------------------------------------------------------


def test_shards_in_bfloat16_are_computed_in_float32(tmp_path):
    model = theirs("gemma2").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.float().save_pretrained(tmp_path / "whole")
    ours = jc.load(tmp_path / "shards").model
    assert ours.dtype == jnp.float32
    assert_equal_models(ours, jc.load(tmp_path / "whole").model)


def test_the_text_of_a_gemma_3_with_images_is_read(tmp_path):
    """Under the names of the hub's checkpoints and of newer ones; the rest of it is left alone."""
    from safetensors.numpy import load_file, save_file

    theirs("gemma3").save_pretrained(tmp_path / "text")
    tensors, config = (
        load_file(tmp_path / "text/model.safetensors"),
        json.loads((tmp_path / "text/config.json").read_text()),
    )
    ours = jc.load(tmp_path / "text").model
    for number, prefix in enumerate(("language_model.model.", "model.language_model.")):
        folder = tmp_path / str(number)
        folder.mkdir()
        whole = {"model_type": "gemma3", "text_config": config, "vision_config": {"a": 1}, "boi_token_index": 3}
        whole |= {"initializer_range": 0.02, "tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(whole))
        renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        save_file(renamed | {"vision_tower.a.weight": np.ones(3, np.float32)}, folder / "model.safetensors")
        assert_equal_models(jc.load(folder).model, ours)
        odd = {"tie_word_embeddings": False, "quantization_config": {"bits": 4}, "is_encoder_decoder": True, "foo": 1}
        for key, value in odd.items():
            (folder / "config.json").write_text(json.dumps(whole | {key: value}))
            with pytest.raises(ValueError, match=key):
                jc.load(folder)


def test_a_neox_checkpoint_may_hold_its_unused_buffers(tmp_path):
    from safetensors.numpy import load_file, save_file

    theirs("neox").save_pretrained(tmp_path)
    ours = jc.load(tmp_path).model
    tensors = load_file(tmp_path / "model.safetensors")
    for buffer in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        tensors[f"gpt_neox.layers.0.attention.{buffer}"] = np.ones(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_equal_models(jc.load(tmp_path).model, ours)


def test_only_a_gpt2_is_folded(tmp_path):
    theirs("neox").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only a GPT2's layer norms and value biases can be folded, got NeoX"):
        jc.load(tmp_path, fold_layer_norms=True)
