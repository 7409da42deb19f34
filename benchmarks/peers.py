"""The peers, on the same weights and the same tokens: plain transformers, and lm-evaluation-harness.

    full logits        `model(input_ids, labels=input_ids).loss`, as most scripts compute it
    lm-eval, rolling   `HFLM.loglikelihood_rolling` with max_length = each length

lm-eval is given ids in place of texts, so that it tokenises nothing, and scores what the others do. It adds up log
probabilities in the model's own type: in bfloat16 its sum is rounded to three digits.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from benchmarks.common import BOS, LM_EVAL, Figure, not_run, quiet
from hope_eval import LanguageModel

INSTALLED = find_spec("lm_eval") is not None


def plain(model: LanguageModel) -> Any:
    """A model with the same weights as transformers builds it, without hope-eval's changes."""
    module: Any = model.module
    config = copy.deepcopy(module.config)
    if type(module).__module__.startswith("transformers."):
        # The default of transformers; only hope-eval sets another.
        config._attn_implementation = "sdpa"
    with torch.device("meta"):
        twin = type(module)(config)
    twin.load_state_dict(module.state_dict(), assign=True)
    twin.tie_weights()
    for name, buffer in module.named_buffers():
        parent, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(parent), attribute, buffer)
    return twin.eval()


@torch.inference_mode()
def full_logits(module: Any, ids: np.ndarray) -> float:
    """Mean nll of all ids but the first."""
    ids_BL = torch.from_numpy(ids)[None].to(module.device)
    loss: float = module(input_ids=ids_BL, labels=ids_BL, use_cache=False).loss.item()
    return loss


@torch.inference_mode()
def full_logits_of_answer(module: Any, context: np.ndarray, answer: np.ndarray) -> float:
    """Nll of an answer, from the logits of all tokens."""
    ids_BL = torch.from_numpy(np.concatenate([context, answer])).to(module.device)[None]
    logits_TV = module(input_ids=ids_BL, use_cache=False).logits[0, len(context) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits_TV.float(), ids_BL[0, len(context) :], reduction="sum"))


class LmEval:
    """lm-evaluation-harness on a loaded model. Texts are BOS and ids."""

    def __init__(self, module: Any, tokenizer: Any) -> None:
        # HFLM adds a padding token.
        self._module, self._tokenizer = module, copy.deepcopy(tokenizer)
        self._texts: dict[str, list[int]] = {}

    @cached_property
    def _kind(self) -> Any:
        from lm_eval.models.huggingface import HFLM

        texts = self._texts

        class Known(HFLM):  # type: ignore[misc]
            """A tokenizer that looks texts up instead of tokenising them."""

            def tok_encode(self, string: str, *_: Any, **__: Any) -> list[int]:
                return texts[string]

        return Known

    def _peer(self, max_length: int, batch_size: int, bos: int) -> Any:
        with quiet():
            return self._kind(
                pretrained=self._module,
                tokenizer=self._tokenizer,
                max_length=max_length,
                batch_size=batch_size,
                prefix_token_id=bos,
            )

    def rolling(self, texts: Sequence[np.ndarray], length: int, batch_size: int = 1) -> float:
        """Mean nll of all tokens of all texts but the first of each, in windows of that length."""
        from lm_eval.api.instance import Instance

        self._texts.clear()
        self._texts.update({str(n): ids[1:].tolist() for n, ids in enumerate(texts)})
        requests = [Instance("loglikelihood_rolling", {}, (name,), int(name)) for name in self._texts]
        peer = self._peer(length, batch_size, int(texts[0][0]))
        with quiet():
            sums = peer.loglikelihood_rolling(requests, disable_tqdm=True)
        return -float(sum(sums)) / sum(len(ids) - 1 for ids in texts)

    def answers(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        """Nll of each answer given its context, which begins with BOS; each is read by itself."""
        longest = max(len(context) + len(answer) for context, answer in pairs)
        peer = self._peer(longest, 1, BOS)
        # `loglikelihood` tokenises, then calls this.
        requests = [((str(n), ""), c.tolist(), a.tolist()) for n, (c, a) in enumerate(pairs)]
        with quiet():
            return [-score[0] for score in peer._loglikelihood_tokens(requests, disable_tqdm=True)]


def lm_eval_missing(way: str = LM_EVAL, **facts: Any) -> Figure:
    """Figures of a peer that is not installed."""
    return not_run(way, "not installed", **facts)
