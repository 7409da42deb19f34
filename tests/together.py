"""What processes do that hold a model together, or read a text: `torchrun tests/together.py WHAT ROOT CHECKPOINT…`.

scores    what the models give a few samples, into ROOT/RANK.json
measure   that, and perplexity and a task, into ROOT/runs
reads     what the models give texts that all read together, into ROOT/RANK.json
perplexity   that, and perplexity, into ROOT/runs
memory    the scores, where memory does not suffice for all samples at once
command   hope-eval, with the arguments that follow

FAULTS    in the environment, says what goes wrong, and in which process: see `Faults`
"""

import json
import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from transformers.distributed import tensor_parallel

from hope_eval import cli
from hope_eval.data.corpora import Corpus, Document
from hope_eval.evaluation.loop import measure
from hope_eval.evaluation.perplexity import Perplexity
from hope_eval.evaluation.questions import Questions
from hope_eval.model import checkpoint
from hope_eval.model.decoder import LlamaForCausalLM
from hope_eval.model.parallel import group as parallel
from hope_eval.model.reading import Reader
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import protocol_named
from hope_eval.runs.processes import ALONE, Ranks, joined
from hope_eval.task import Prompt, Question, Sample, parse_task


def samples(vocab_size: int) -> list[Sample]:
    ids = np.random.default_rng(3).integers(1, vocab_size, (4, 60))
    return [Sample(row[:20], row[20:]) for row in ids]


def prompts(vocab_size: int) -> list[Prompt]:
    ids = np.random.default_rng(4).integers(1, vocab_size, (3, 60))
    return [
        Prompt(row[:30], (Question(row[30:34], row[34:37], choices=(row[37:38], row[38:41])), Question((), row[41:44])))
        for row in ids
    ]


def given(model: LanguageModel) -> dict[str, list[float]]:
    """Return what a model gives samples and prompts, and what it writes."""
    vocab_size = model.module.config.vocab_size
    asked = [score for scores in model.score_prompts(prompts(vocab_size)) for score in scores]
    return {
        "nll": [float(x) for score in model.score(samples(vocab_size)) for x in score.nll],
        "answers": [float(x) for score in asked for x in (*score.nll, *score.others)],
        "written": [
            float(x)
            for ids in model.generate([one.context for one in samples(vocab_size)], 12)
            for x in (len(ids), *ids)
        ],
    }


def long_samples(vocab_size: int) -> list[list[Sample]]:
    """Return what is read at once: of lengths that nothing divides; three texts; the end of one; what is short."""
    ids = np.random.default_rng(5).integers(1, vocab_size, (3, 1100))
    return [
        [Sample(row[:1], row[1:519]) for row in ids],
        [Sample(ids[0, :1], ids[0, 1:1031], unread=1)],
        [Sample(ids[1, :880], ids[1, 880:901])],
        [Sample(row[:30], row[30:101]) for row in ids[:2]],
    ]


def read(model: LanguageModel) -> dict[str, list[float]]:
    """Return what a model gives long samples."""
    batches = [model.score(batch) for batch in long_samples(model.module.config.vocab_size)]
    scores = [score for batch in batches for score in batch]
    return {
        "nll": [float(x) for score in scores for x in score.nll],
        "greedy": [float(x) for score in scores for x in score.greedy],
        "target": [float(x) for score in scores for x in score.target],
    }


TEXTS = ["".join(f"Chapter {n} of {m} went to sea with {m + n} figs.\n" for n in range(30)) for m in range(5)]


def perplexed(
    model: LanguageModel, root: Path, ranks: Ranks = ALONE, lengths: tuple[int, ...] = (50, 301, 700)
) -> None:
    """Measure perplexity."""
    corpus = Corpus("stories", tuple(Document(str(n), text) for n, text in enumerate(TEXTS)), "stories")
    perplexity = Perplexity.of(model, protocol_named("prefix"), lengths, corpus)
    measure(perplexity, model, root, ranks=ranks)


def measured(model: LanguageModel, root: Path, ranks: Ranks = ALONE) -> None:
    """Measure perplexity and a task."""
    perplexed(model, root, ranks, (50, 64))
    task = parse_task("associative_recall")
    measure(Questions.of(model, task, (200,), n_contexts=2, controls=False), model, root, ranks=ranks)


def run(what: str, root: Path, arguments: list[str]) -> None:
    faults = Faults()
    reads = what in ("reads", "perplexity")
    size = {"context_parallel" if reads else "tensor_parallel": int(os.environ["WORLD_SIZE"])}
    with joined(root / "runs", **size) as ranks, parallel.held_together(ranks, "cpu") as group:
        found = {}
        for path in arguments:
            name, _, encoding = path.partition("+")
            model = checkpoint.load(name, device="cpu", group=group, encoding=encoding or "native")
            parameters = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel()
                             for p in model.module.parameters())  # fmt: skip
            found[path] = {
                "head": model.reading.head, "keeps_contexts": model.reading.keeps_contexts,
                "fingerprint": model.fingerprint,
                "parameters": parameters,
            }  # fmt: skip
            faults.spoil(model)
            if reads:
                found[path] |= read(model)
                continue
            found[path] |= given(model)
            found[path]["least"] = group.least(7.5 - ranks.rank, model.device)
        if what == "measure":
            measured(model, root / "runs", ranks)
        if what == "perplexity":
            perplexed(model, root / "runs", ranks)
        ranks.finish()
        (root / f"{ranks.rank}.json").write_text(json.dumps(found))


class Faults:
    """What goes wrong: `FAULTS=dies:1:3` kills process 1 in its third forward, `stops:1:3` stops it for a minute.

    `narrow:01` has both run out of memory where they read more than 70 tokens at once, `narrow:01:300` more than 300.
    `leans:1` makes the logits of process 1 differ from the others'. `unsummed` leaves out the sums over processes,
    `ungathered` logits of the others.
    """

    def __init__(self) -> None:
        self.kind, self.who, at, *_ = *os.environ.get("FAULTS", "").split(":"), "", "", ""
        self.mine = os.environ["RANK"] in self.who
        self.left = int(at or 0)
        self.most = self.left or 70
        parallel._SOON = timedelta(seconds=3)
        if self.kind == "stops":
            parallel.PATIENCE = timedelta(seconds=5)
        if self.kind == "unsummed":
            tensor_parallel.RowwiseParallel.transform_output_post_forward = lambda style, module, output, mesh: output
        if self.kind == "ungathered":
            LlamaForCausalLM._tp_plan = {"lm_head": "colwise"}
        forwarded = Reader.forwarded

        def faulty(reader, samples):
            # Not while the model is checked, on loading.
            self.left -= reader.reading.head_chunk is None
            if self.left == 0 and self.mine and self.kind == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.left == 0 and self.mine and self.kind == "stops":
                time.sleep(60)
            return forwarded(reader, samples)

        Reader.forwarded = faulty

    def spoil(self, model: LanguageModel) -> None:
        """Let memory end in the second layer, when sums of the first were begun; or the head prefer a token."""

        def check(module, arguments):
            if arguments[0].numel() // arguments[0].shape[-1] > self.most and self.mine:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 62 GiB.")

        def lean(module, arguments, logits_BLV):
            return logits_BLV + 20.0 * (torch.arange(logits_BLV.shape[-1]) == 9)

        if self.kind == "narrow":
            model.module.model.layers[1].mlp.register_forward_pre_hook(check)
        if self.kind == "leans" and self.mine:
            model.module.lm_head.register_forward_hook(lean)


def serve() -> None:
    """Do what each line says, and answer with the exit codes of its processes; None is one that went on for ever."""
    for line in sys.stdin:
        order = json.loads(line)
        pids = [forked(rank, order) for rank in range(order["n"])]
        codes: dict[int, int | None] = dict.fromkeys(pids)
        start = time.monotonic()
        while None in codes.values() and time.monotonic() - start < 300:
            for pid in [pid for pid, code in codes.items() if code is None]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        for pid in (pid for pid, code in codes.items() if code is None):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        print(json.dumps([codes[pid] for pid in pids]), flush=True)


def forked(rank: int, order: dict) -> int:
    """Return the id of a process that does its part, as torchrun would start it."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ |= {**order["environment"], "RANK": str(rank), "LOCAL_RANK": str(rank)}
        # Whatever ends the process writes there last.
        sys.stderr = sys.__stderr__ = Path(order["root"], f"{rank}.err").open("w", buffering=1)  # noqa: SIM115
        run(order["what"], Path(order["root"]), order["checkpoints"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "command":
        Faults()
        sys.argv[1:] = sys.argv[2:]
        cli.main()
    elif sys.argv[1] == "serve":
        serve()
    else:
        run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
