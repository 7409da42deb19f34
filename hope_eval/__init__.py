"""How far past its training window does a language model work, and how do position encodings compare?

Importing this package is cheap: it does not import torch. It asks Python for one thing: as soon as any code imports the
rope module of transformers, the rotary encodings of this package are registered there as rope types. So

    import hope_eval
    model = AutoModelForCausalLM.from_pretrained("folder of a checkpoint whose config says rope_type: hope")

works without a further call; so do checkpoints of this package's own decoder, which has all encodings.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from wrapt.importer import register_post_import_hook

if TYPE_CHECKING:
    from hope_eval.api import HopeEvalError, LanguageModel, PositionEncoding, Sample, attach, load

__version__ = "0.1.0"

# The modules that the decoder needs; it is registered after the last of them is imported.
_NEEDED = (
    "transformers.modeling_layers",
    "transformers.modeling_utils",
    "transformers.models.auto.configuration_auto",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.configuration_llama",
    "transformers.models.llama.modeling_llama",
)

__all__ = ["HopeEvalError", "LanguageModel", "PositionEncoding", "Sample", "__version__", "attach", "load"]


def __getattr__(name: str) -> Any:
    # On first use, so that `import hope_eval` stays cheap.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("hope_eval.api"), name)


def _register_rope_types(rope_module: Any) -> None:
    from hope_eval.model.rope_types import register_all

    register_all(rope_module)


def _register_layers(modeling_utils: Any) -> None:
    from hope_eval.model import layer_rotary

    def put_on(model: Any) -> None:
        from hope_eval.model.attach import put_on_layers

        put_on_layers(model)

    layer_rotary.come_back(modeling_utils, put_on)


def _register_decoder(loaded: Any) -> None:
    # While another of these is half loaded, no model can be defined; its own hook comes later.
    others = (sys.modules.get(name) for name in _NEEDED)
    if not any(_is_half_loaded(module) for module in others if module is not loaded):
        importlib.import_module("hope_eval.model.decoder")


def _is_half_loaded(module: Any) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


register_post_import_hook(_register_rope_types, "transformers.modeling_rope_utils")
register_post_import_hook(_register_layers, "transformers.modeling_utils")
for _name in _NEEDED:
    register_post_import_hook(_register_decoder, _name)
