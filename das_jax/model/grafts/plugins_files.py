"""Plug-ins in files of our own: no library's format has them."""

from das_jax.model.grafts.files import ABOUT_FILE, OwnFormat
from das_jax.model.grafts.plugins import Plugins

WEIGHTS_FILE = "plugins.safetensors"

PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")
"""Of a net."""

LOADER = f"""\
import json, pathlib
from safetensors.torch import load_file
from torch.nn.functional import linear, relu
from transformers import AutoModelForMaskedLM

def load(base, folder):
    model = AutoModelForMaskedLM.from_pretrained(base).eval()
    settings = json.loads(pathlib.Path(folder, "{ABOUT_FILE}").read_text())["settings"]
    last = relu if settings["output_activation"] == "relu" else lambda x: x
    tensors = load_file(f"{{folder}}/{WEIGHTS_FILE}")
    def net(place):
        D, b, U, c = (tensors[f"{{place}}.{{part}}"] for part in {PARTS!r})
        return lambda z: last(linear(relu(linear(z, D, b)), U, c))
    def insert(number, layer):
        of_context, of_output = net(f"{{number}}.attention"), net(f"{{number}}.feed_forward")
        layer.attention.output.register_forward_pre_hook(lambda _, x: (x[0] + of_context(x[1]), x[1]))
        layer.output.register_forward_pre_hook(lambda _, x: (x[0], x[1] + of_output(x[1])))
    for number, layer in enumerate(model.base_model.encoder.layer):
        insert(number, layer)
    return model
"""

FORMAT = OwnFormat(
    Plugins,
    WEIGHTS_FILE,
    "Plug-ins beside the sub-layers\n\nEvery layer of the base has two nets more, which no plain model "
    "of transformers expresses; the\ngates of their domain are in their matrices.",
    LOADER,
)
