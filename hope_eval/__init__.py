"""How far past its training window does a language model work, and how do position encodings compare?

Importing this package is cheap: it loads no torch. It does leave a note with Python that, as soon as transformers'
rope module is imported (by whoever), the rotary encodings of this package are registered there as rope types. So

    import hope_eval
    model = AutoModelForCausalLM.from_pretrained("folder of a checkpoint whose config says rope_type: hope")

works with no further call; so do checkpoints of this package's own decoder, which has all encodings.
"""

import importlib
import sys
from typing import Any

from wrapt.importer import register_post_import_hook

__version__ = "0.1.0"

# What the decoder is made of; whichever of them is imported last, by whoever, the decoder comes after it.
_NEEDED = (
    "transformers.modeling_layers",
    "transformers.modeling_utils",
    "transformers.models.auto.configuration_auto",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.configuration_llama",
    "transformers.models.llama.modeling_llama",
)

# Public names and the modules they live in; resolved on first use, so that `import hope_eval` stays cheap.
_PUBLIC = {
    "HopeEvalError": "hope_eval.errors",
    "LanguageModel": "hope_eval.model.scoring",
    "PositionEncoding": "hope_eval.encodings",
    "Sample": "hope_eval.task",
    "attach": "hope_eval.model.attach",
    "load": "hope_eval.model.checkpoint",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def _register_rope_types(rope_module: Any) -> None:
    from hope_eval.model.rope_types import register_all

    register_all(rope_module)


def _register_decoder(loaded: Any) -> None:
    # While another of these is half loaded, no model can be defined; its own hook comes soon enough.
    others = (sys.modules.get(name) for name in _NEEDED)
    if not any(_is_half_loaded(module) for module in others if module is not loaded):
        importlib.import_module("hope_eval.model.decoder")


def _is_half_loaded(module: Any) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


register_post_import_hook(_register_rope_types, "transformers.modeling_rope_utils")
for _name in _NEEDED:
    register_post_import_hook(_register_decoder, _name)
