"""B-CL's adapters in files of our own: no library's format has them."""

from das_jax.model.grafts.capsules import ROUNDS, Capsules
from das_jax.model.grafts.files import ABOUT_FILE, OwnFormat

WEIGHTS_FILE = "capsules.safetensors"

LOADER = f"""\
import json, pathlib, torch
from safetensors.torch import load_file
from torch.nn.functional import linear, relu
from transformers import AutoModelForMaskedLM

def squash(v):
    length = v.norm(dim=-1, keepdim=True)
    return v * length / (1 + length**2)

def load(base, folder):
    model = AutoModelForMaskedLM.from_pretrained(base).eval()
    domains = json.loads(pathlib.Path(folder, "{ABOUT_FILE}").read_text())["settings"]["domains"]
    tensors = load_file(f"{{folder}}/{WEIGHTS_FILE}")
    def adapter(place):
        def dense(name, x):
            return linear(x, tensors[f"{{place}}.{{name}}.weight"], tensors[f"{{place}}.{{name}}.bias"])
        def add(module, inputs, z):
            votes = []
            for k in map("capsules.{{}}".format, range(domains)):
                own = squash(dense(f"{{k}}.second", dense(f"{{k}}.first", z)))
                votes.append(torch.einsum("joi,...i->...jo", tensors[f"{{place}}.{{k}}.route.weight"], own))
            votes = torch.stack(votes)
            logits = torch.zeros_like(votes[..., :1])
            for _ in range({ROUNDS}):
                shared = (logits.softmax(dim=0) * votes).sum(dim=0)
                logits = logits + (votes * squash(shared)).sum(dim=-1, keepdim=True)
            read = z + dense(f"{{k}}.expand", shared.flatten(-2))
            return z + relu(dense("task.up", relu(dense("task.down", read))))
        return add
    for number, layer in enumerate(model.base_model.encoder.layer):
        layer.attention.output.dropout.register_forward_hook(adapter(f"{{number}}.attention"))
        layer.output.dropout.register_forward_hook(adapter(f"{{number}}.feed_forward"))
    return model
"""

FORMAT = OwnFormat(
    Capsules,
    WEIGHTS_FILE,
    "Adapters with capsules\n\nThey stand behind both sub-layers of the base, of one domain and all "
    "before it, which no plain\nmodel of transformers expresses; the domain's gates are in the matrices.",
    LOADER,
)
