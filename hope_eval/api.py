"""The names that `import hope_eval` gives: load a checkpoint, swap its position encoding, score tokens.

    import hope_eval

    model = hope_eval.load("path/to/checkpoint", encoding="hope")
    (score,) = model.score([hope_eval.Sample(context=ids[:100], target=ids[100:])])

`hope_eval/__init__.py` imports this module when one of the names is used first, since it imports torch.
"""

from hope_eval.encodings import PositionEncoding
from hope_eval.errors import HopeEvalError
from hope_eval.model.attach import attach
from hope_eval.model.checkpoint import load
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Sample

__all__ = ["HopeEvalError", "LanguageModel", "PositionEncoding", "Sample", "attach", "load"]
