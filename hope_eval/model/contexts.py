"""Questions on a context that is read once: its keys and values are kept, and every answer is read after them.

Shape letters: B contexts, L tokens, N tokens scored, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hope_eval.model.reading import Reader, Score
from hope_eval.task import Prompt, Question, Sample

# Copies of the keys and values of contexts, bytes, so that answers are read after them side by side.
_COPIES_BYTES = {"cuda": 8 << 30, "cpu": 512 << 20}


@dataclass(frozen=True)
class Branch:
    """One answer to one question of the prompt in that row: the tokens that are read after its context.

    others: other answers of one token each, which are scored without a read of their own.
    """

    row: int
    question: int
    query: np.ndarray
    answer: np.ndarray
    others: np.ndarray


def score_prompts(reader: Reader, prompts: Sequence[Prompt]) -> list[list[Score]]:
    """Score every question of prompts whose contexts are equally long; each context is read once.

    The keys and values of the contexts are kept, and every answer of every question is read after them, many side
    by side. A model that keeps something else (recurrent states), or that changes with the length read, reads every
    answer with its whole context. The scores are the same.

    Raises OutOfMemory, after halving the batch, for a prompt that does not fit.
    """
    assert len({len(prompt.context) for prompt in prompts}) == 1, "contexts read together are equally long"
    if reader.reading.keeps_contexts and len(prompts[0].context) > 1:
        try:
            with torch.inference_mode():
                scores = scored_after_contexts(reader, prompts)
            if scores is not None:
                return scores
            fits = True
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not reader.is_out_of_memory(error):
                raise
            fits = False
        # Inside `except`, the error keeps the tensors that did not fit.
        if not fits:
            reader.empty_cache()
            if reader.halve_layers(len(prompts) * len(prompts[0].context)):
                return score_prompts(reader, prompts)
            if len(prompts) > 1:
                half = len(prompts) // 2
                return score_prompts(reader, prompts[:half]) + score_prompts(reader, prompts[half:])
    return [[scored_alone(reader, prompt, question) for question in prompt.questions] for prompt in prompts]


def scored_alone(reader: Reader, prompt: Prompt, question: Question) -> Score:
    """Score a question by reading its whole context for each of its answers."""
    scores = [reader.score([Sample(prompt.context, answer, question.query)])[0] for answer in question.answers]
    others = np.array([score.nll.sum() for score in scores[1:]], np.float32)
    return replace(scores[0], others=others)


def scored_after_contexts(reader: Reader, prompts: Sequence[Prompt]) -> list[list[Score]] | None:
    """Score all questions; None if the model keeps more than keys and values of the contexts."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    contexts_BL = torch.stack([torch.as_tensor(np.asarray(p.context, np.int64)) for p in prompts])
    # The last token of a context is read with each question: its prediction is scored if there is no query.
    with reader.reading.kernels.preferred(contexts_BL.shape[1]):
        cache = reader.decoded(contexts_BL[:, :-1], past_key_values=DynamicCache(), use_cache=True).past_key_values
    if any(type(layer) is not DynamicLayer for layer in getattr(cache, "layers", [None])):
        return None
    kept = [(layer.keys, layer.values) for layer in cache.layers]
    branches = branches_of(prompts)
    scored: dict[tuple[int, int], list[Score]] = {}
    n = len(prompts) * _n_copies(reader, sum(keys.nbytes + values.nbytes for keys, values in kept))
    for start in range(0, len(branches), n):
        group = branches[start : start + n]
        for layer, (keys, values) in zip(cache.layers, kept, strict=True):
            rows = [branch.row for branch in group]
            layer.keys, layer.values = _rows_of(keys, rows), _rows_of(values, rows)
        for branch, score in zip(group, _scored_branches(reader, group, contexts_BL[:, -1], cache), strict=True):
            scored.setdefault((branch.row, branch.question), []).append(score)
    return [
        [_with_others(question, *scored[row, number]) for number, question in enumerate(prompt.questions)]
        for row, prompt in enumerate(prompts)
    ]


def _n_copies(reader: Reader, n_bytes: int) -> int:
    free = float(torch.cuda.mem_get_info(reader.device)[0]) if reader.device.type == "cuda" else None
    if reader.group and free is not None:
        free = reader.group.least(free, reader.device)
    return contexts_copied(reader.device.type, n_bytes, free)


def _scored_branches(reader: Reader, branches: Sequence[Branch], last_B: Tensor, cache: Any) -> list[Score]:
    """Score answers after their contexts, whose keys and values the cache holds, a row for each answer."""
    # Padding on the right is never looked at.
    ids_BL = torch.zeros(len(branches), max(len(b.query) + len(b.answer) for b in branches), dtype=torch.long)
    for row, branch in enumerate(branches):
        ids = np.concatenate([branch.query, branch.answer[:-1]]).astype(np.int64)
        ids_BL[row, 0] = last_B[branch.row]
        ids_BL[row, 1 : 1 + len(ids)] = torch.from_numpy(ids)
    output = reader.decoded(ids_BL, past_key_values=cache, use_cache=True)
    sizes = [len(branch.answer) + len(branch.others) for branch in branches]
    rows = np.repeat(np.arange(len(branches)), sizes)
    # Other answers of one token are predicted at the place of the first token of this answer.
    steps = (np.concatenate([np.arange(len(b.answer)), np.zeros(len(b.others), np.int64)]) for b in branches)
    columns = np.concatenate([len(b.query) + step for b, step in zip(branches, steps, strict=True)])
    hidden_ND = output.last_hidden_state[torch.from_numpy(rows), torch.from_numpy(columns)]
    target_N = torch.from_numpy(np.concatenate([ids for b in branches for ids in (b.answer, b.others)]))
    score = reader.score_in_chunks(lambda start, stop: reader.head(output, hidden_ND[None, start:stop])[0], target_N)
    ends = np.cumsum(sizes)[:-1]
    by_branch = (np.split(values, ends) for values in (score.nll, score.target, score.greedy))
    return [
        Score(nll[:n], target[:n], greedy[:n], nll[n:])
        for branch, nll, target, greedy in zip(branches, *by_branch, strict=True)
        for n in [len(branch.answer)]
    ]


def contexts_copied(device_type: str, n_bytes: int, free: float | None) -> int:
    """Copies of keys and values of that size, after which answers are read side by side.

    free: bytes of memory that are left; None: unknown.
    """
    budget = _COPIES_BYTES.get(device_type, _COPIES_BYTES["cpu"])
    if free is not None:
        budget = min(budget, int(free) // 4)
    return max(1, budget // max(1, n_bytes))


def branches_of(prompts: Sequence[Prompt]) -> list[Branch]:
    """All answers of all questions; answers with the same number stand together for all prompts."""
    branches: list[tuple[tuple[int, int, int], Branch]] = []
    for row, prompt in enumerate(prompts):
        for number, question in enumerate(prompt.questions):
            query = np.asarray(question.query, np.int64)
            short = np.array([answer[0] for answer in question.choices if len(answer) == 1], np.int64)
            read = [question.target, *(answer for answer in question.choices if len(answer) > 1)]
            for which, answer in enumerate(read):
                others = short if which == 0 else short[:0]
                branch = Branch(row, number, query, np.asarray(answer, np.int64), others)
                branches.append(((number, which, row), branch))
    return [branch for _, branch in sorted(branches, key=lambda pair: pair[0])]


def _with_others(question: Question, first: Score, *read: Score) -> Score:
    """Score of a target, with the scores of all other answers in their order."""
    short, long = iter(first.others), (score.nll.sum() for score in read)
    others = [next(short) if len(answer) == 1 else next(long) for answer in question.choices]
    return replace(first, others=np.array(others, np.float32))


def _rows_of(kept: Tensor, rows: list[int]) -> Tensor:
    """These rows of keys or values [B, H, L, E], copied only if they are in another order."""
    if rows == list(range(len(kept))):
        return kept
    if len(kept) == 1:
        return kept.expand(len(rows), -1, -1, -1)
    return kept.index_select(0, torch.tensor(rows, device=kept.device))
