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

_MODELS = "transformers.models.auto.modeling_auto"

# Public names and the modules they live in; resolved on first use, so that `import hope_eval` stays cheap.
_PUBLIC = {
    "HopeEvalError": "hope_eval.errors",
    "LanguageModel": "hope_eval.model.scoring",
    "PositionEncoding": "hope_eval.encoding",
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
    from hope_eval.encoding import register_rope_types

    register_rope_types(rope_module)


def _register_decoder(_: Any) -> None:
    # While transformers' table of models is half loaded, no model can be defined; its own hook comes soon enough.
    if getattr(sys.modules.get(_MODELS, sys), "AutoModelForCausalLM", None) or _MODELS not in sys.modules:
        importlib.import_module("hope_eval.model.decoder")


register_post_import_hook(_register_rope_types, "transformers.modeling_rope_utils")
register_post_import_hook(_register_decoder, "transformers.models.auto.configuration_auto")
register_post_import_hook(_register_decoder, _MODELS)
