"""Makes tests/golden/transformers: a random GPT-2 and the logits that transformers gives (needs torch).

python tests/golden/make_transformers_logits.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers

folder = Path(__file__).parent / "transformers"
config = transformers.GPT2Config(
    n_layer=3, n_head=4, n_embd=16, n_positions=10, vocab_size=23, n_inner=40, layer_norm_epsilon=1e-3,
    activation_function="gelu", attn_implementation="eager",
)  # fmt: skip
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for weight in model.parameters():
        weight += 0.3 * torch.randn_like(weight)
model.save_pretrained(folder)
tokens = np.random.default_rng(0).integers(0, 23, (4, 9)).astype(np.int32)
with torch.no_grad():
    logits = model.double()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
np.savez(folder / "logits.npz", tokens=tokens, logits=logits)
print(f"torch {torch.__version__}, transformers {transformers.__version__}, logits {logits.shape}")
