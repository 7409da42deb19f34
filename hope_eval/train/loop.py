"""Train a small model with a given encoding, so that encodings can be compared with all else equal.

    lines (see lines.py)  ->  one plain loop  ->  checkpoint folder (plain transformers format)

Matched control: for all encodings of one seed, initial weights, data, order, tokens and optimiser are the same. bf16
autocast on CUDA, torch.compile, and any number of GPUs by torchrun (batches are shared out, results are the same).

The loop is our own and not transformers' Trainer: for the 3.4M model and steps of 32,768 tokens on an H200 it takes
9.96 ms a step, compiled, where the Trainer takes 12.67 (benchmarks/training_speed.py); and what decides a comparison,
the order of lines, the schedule, what decays, is then in this file and does not change with a library's version.

    OUT/model.safetensors, config.json, tokenizer…   when it is done, in bfloat16
    OUT/training.json                                how it was trained, what it took
    OUT/training.jsonl                               a line every few steps: loss; now and then: nll at 1x, 2x, 4x
    OUT/.work/                                       lines and the last checkpoint, until it is done

The same command goes on with an interrupted training, at its last checkpoint, to the same losses.

Shape letters: B lines of a batch, L tokens of a line, N texts.
"""

import contextlib
import json
import math
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, distributed, nn

from hope_eval.data.corpora import Corpus, load_corpus
from hope_eval.encodings import Geometry, parse_encoding
from hope_eval.errors import CheckpointError, OptionError, TrainingError, did_you_mean
from hope_eval.model.checkpoint import quiet
from hope_eval.model.decoder import HopeEvalConfig, HopeEvalForCausalLM
from hope_eval.model.scoring import LanguageModel
from hope_eval.runs.provenance import origin
from hope_eval.task import Sample, Vocabulary, task_class
from hope_eval.train.rows import SHARES, Lines, check_disk, make_lines
from hope_eval.train.tokenizer import train_tokenizer

# Installed packages that are trained on. Never on this list: the standard library, which is the default text to
# evaluate on, sympy and networkx. They are held out whole.
PACKAGES = (
    "accelerate",
    "click",
    "datasets",
    "fsspec",
    "huggingface_hub",
    "numpy",
    "pandas",
    "pyarrow",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
HELD_OUT = ("python", "python:networkx,sympy")
TEXTS = "python:" + ",".join(PACKAGES)

# Train a tokenizer on the texts.
NEW = "new"

_DOCUMENTS_EVALUATED = 8

# Characters that are tokenised in one go, at least.
_PIECE = 200_000

# Steps from which on compiling pays.
_COMPILED_FROM = 1000

# Called with what is done so far, and with what is to be done in all.
Report = Callable[[int, int], None]

# From a title and a unit to such a report, as long as the work goes on.
Progress = Callable[[str, str], contextlib.AbstractContextManager[Report]]


@contextlib.contextmanager
def silently(title: str, unit: str) -> Iterator[Report]:
    """Show no progress."""
    yield lambda done, total: None


@dataclass(frozen=True)
class Size:
    """The shape of a model, and the learning rate that suits it."""

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.d_model}x{self.n_layers}x{self.n_heads}"


# Named by parameters at 4,096 tokens of vocabulary; 125m and 3b are the shapes of the paper.
SIZES = {
    "1m": Size(128, 4, 2, 344, 3e-3),
    "3m": Size(192, 6, 3, 512, 2e-3),
    "12m": Size(384, 6, 6, 1024, 1.5e-3),
    "35m": Size(512, 10, 8, 1376, 1e-3),
    "125m": Size(768, 12, 12, 3072, 6e-4),
    "350m": Size(1024, 24, 16, 2816, 3e-4),
    "1b": Size(2048, 20, 16, 5632, 2e-4),
    "3b": Size(2560, 32, 20, 8960, 1.6e-4),
}


def parse_size(text: str) -> Size:
    """Read `3m`, or `192x6x3`: width, layers and heads.

    Raises OptionError for an unknown size, and for heads that do not divide the width.
    """
    if text in SIZES:
        return SIZES[text]
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match:
        raise OptionError(
            f"no size is called `{text}`",
            did_you_mean(text, SIZES, f"one of {', '.join(SIZES)}, or width x layers x heads: 192x6x3"),
        )
    d_model, n_layers, n_heads = map(int, match.groups())
    if not d_model or not n_layers or not n_heads or d_model % (2 * n_heads):
        raise OptionError(
            f"a width of {d_model} does not divide into {n_heads} heads of an even number of dimensions",
            f"--size {max(1, n_heads) * 64}x{max(1, n_layers)}x{max(1, n_heads)}",
        )
    return Size(d_model, n_layers, n_heads, 8 * round(d_model / 3), 2e-3 * min(1.0, (192 / d_model) ** 0.5))


@dataclass(frozen=True)
class Recipe:
    """All that a trained model follows from.

    encoding:      its name and parameters, as on the command line.
    size:          a name of SIZES, or width x layers x heads.
    train_length:  tokens of a line.
    tokens:        that are trained on in all; rounded down to whole batches.
    seed:          of initial weights and lines.
    texts:         corpora, as for `--data` of `hope-eval ppl`.
    tokenizer:     a checkpoint folder to take it from, or `new`.
    batch_tokens:  of one step of the optimiser, over all GPUs.
    learning_rate: highest; 0: what suits the size.
    """

    encoding: str
    size: str = "3m"
    train_length: int = 256
    tokens: int = 100_000_000
    seed: int = 0
    texts: tuple[str, ...] = (TEXTS,)
    tokenizer: str = NEW
    batch_tokens: int = 32_768
    learning_rate: float = 0.0

    @property
    def batch_lines(self) -> int:
        """Lines of one step."""
        return max(1, self.batch_tokens // self.train_length)

    @property
    def n_steps(self) -> int:
        """Steps of the optimiser."""
        return max(1, self.tokens // (self.batch_lines * self.train_length))

    @property
    def n_tokens(self) -> int:
        """Tokens that are trained on, in whole batches."""
        return self.n_steps * self.batch_lines * self.train_length

    def check(self) -> None:
        """Raise an error for what can be seen to be wrong before any work is done."""
        size = parse_size(self.size)
        geometry = Geometry(size.d_model // size.n_heads, size.n_heads, self.train_length, d_model=size.d_model)
        parse_encoding(self.encoding).build(geometry)


@dataclass
class Prepared:
    """What all trainings of one seed share."""

    lines: Lines
    tokenizer: Any
    corpora: list[Corpus]
    evaluated: list[np.ndarray] = field(repr=False, default_factory=list)


def train(
    recipe: Recipe,
    out: Path,
    *,
    work: Path | None = None,
    device: str = "auto",
    compile_model: bool | None = None,
    save_steps: int = 0,
    command: str = "",
    force: bool = False,
    report: Report = lambda done, total: None,
) -> Path:
    """Train the model of a recipe into the folder `out`, or go on with it; return the folder.

    work:          where lines are kept meanwhile; trainings side by side share it. By default below `out`.
    device:        auto, or a torch device.
    compile_model: torch.compile; None: on CUDA, if there are steps enough to pay for the compiling.
    save_steps:    steps between checkpoints; 0: a tenth of the training.
    force:         throw away another training in `out`.
    report:        called with tokens trained on so far, and in all.

    Raises TrainingError, EncodingError, OptionError or CorpusError.
    """
    recipe.check()
    if _claim(recipe, out, force):
        report(recipe.n_tokens, recipe.n_tokens)
        return out
    with _processes(device) as processes:
        prepared = prepare(recipe, work or out / ".work")
        if compile_model is None:
            compile_model = processes.device.type == "cuda" and recipe.n_steps >= _COMPILED_FROM
        loop = Loop(recipe, prepared, processes, compile_model)
        log = _Log(out / "training.jsonl", processes.rank == 0)
        _run(loop, log, out, save_steps or max(1, recipe.n_steps // 10), report)
        if processes.rank == 0:
            _finish(loop, log, out, command)
    return out


def train_all(
    recipes: Mapping[Path, Recipe],
    work: Path,
    jobs: int,
    *,
    report: Report = lambda done, total: None,
    **options: Any,
) -> None:
    """Train several recipes, each into its folder, `jobs` of them side by side in processes of their own.

    work:    where the lines that they share are kept, until all are done.
    report:  called with the tokens of all trainings together.
    options: as for `train`.

    If one fails, the others go on, and its error is raised at the end.
    """
    todo = prepare_all(recipes, work, force=options.pop("force", False))
    total = {out: recipe.n_tokens for out, recipe in recipes.items()}
    done = {out: 0 if out in todo else total[out] for out in recipes}
    context = multiprocessing.get_context("spawn")
    n_threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(n_threads))
    errors: list[BaseException] = []
    with context.Manager() as manager, ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        queue: Any = manager.Queue()
        shared = (work, queue, n_threads, options)
        running = {pool.submit(_in_process, recipe, out, *shared) for out, recipe in todo.items()}
        started = 0
        while running:
            finished, running = wait(running, timeout=0.5)
            errors += [error for future in finished if (error := future.exception())]
            while not queue.empty():
                out, tokens = queue.get()
                done[out] = tokens
                started += 1
            if started >= min(jobs, len(todo)):
                report(sum(done.values()), sum(total.values()))
    if errors:
        raise errors[0]
    report(sum(total.values()), sum(total.values()))
    shutil.rmtree(work, ignore_errors=True)


def prepare_all(
    recipes: Mapping[Path, Recipe], work: Path, force: bool = False, progress: Progress = silently
) -> dict[Path, Recipe]:
    """Make the lines of all recipes, and their folders; return those that are not trained yet.

    force: throw away other trainings in these folders.
    """
    for recipe in recipes.values():
        recipe.check()
    todo = {out: recipe for out, recipe in recipes.items() if not _claim(recipe, out, force)}
    for recipe in {(recipe.train_length, recipe.seed, recipe.n_steps): recipe for recipe in todo.values()}.values():
        prepare(recipe, work, progress)
    return todo


def _in_process(recipe: Recipe, out: Path, work: Path, queue: Any, n_threads: int, options: dict[str, Any]) -> None:
    # More threads than cores, and processes wait for each other.
    torch.set_num_threads(n_threads)
    parent = multiprocessing.parent_process()
    said = 0.0

    def report(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > 1:
            said = time.monotonic()
            if parent is not None and not parent.is_alive():
                # It was killed, and would go on with this training itself.
                os._exit(1)
            queue.put((out, done))

    train(recipe, out, work=work, report=report, **options)


def prepare(recipe: Recipe, work: Path, progress: Progress = silently) -> Prepared:
    """Make tokenizer and lines of a recipe in the folder `work`, or find them there."""
    corpora = [load_corpus(text) for text in recipe.texts]
    identity = {"texts": [corpus.fingerprint for corpus in corpora], "tokenizer": recipe.tokenizer}
    work.mkdir(parents=True, exist_ok=True)
    # Processes that train together all come by here: one works, the others wait and find it done.
    with FileLock(work / "lock"):
        return _prepared(recipe, work, corpora, identity, progress)


def _prepared(
    recipe: Recipe, work: Path, corpora: list[Corpus], identity: dict[str, Any], progress: Progress
) -> Prepared:
    tokenizer = _tokenizer(recipe.tokenizer, corpora, work / "tokenizer", identity)
    vocabulary = Vocabulary(tokenizer, tokenizer.bos_token_id)
    stream = _stream(corpora, tokenizer, work / "texts", identity, progress)
    with progress("making lines", "lines") as report:
        lines = make_lines(
            work / f"lines-{recipe.train_length}-{recipe.seed}",
            {**identity, "tasks": {name: task_class(name)().fingerprint for name in SHARES}},
            vocabulary,
            stream,
            recipe.n_steps * recipe.batch_lines,
            recipe.train_length,
            recipe.seed,
            report=report,
        )
    held_out = load_corpus(HELD_OUT[0]).in_order(0)[:_DOCUMENTS_EVALUATED]
    # As much as is needed: a token has at most a handful of characters.
    texts = [document.text[: 40 * recipe.train_length] for document in held_out]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return Prepared(lines, tokenizer, corpora, [np.asarray(one, np.int64) for one in encoded])


def _stream(
    corpora: Sequence[Corpus], tokenizer: Any, folder: Path, identity: dict[str, Any], progress: Progress
) -> np.ndarray:
    """Return the ids of all documents one after the other, the prefix token before each; kept on disk for all seeds."""
    marker, wanted = folder / "identity.json", json.dumps(identity)
    if not marker.is_file() or marker.read_text() != wanted:
        folder.mkdir(exist_ok=True)
        documents = [document.text for corpus in corpora for document in corpus.documents]
        parts, done, total = [], 0, sum(map(len, documents))
        with progress("tokenising texts", "characters") as report:
            report(done, total)
            for text in documents:
                encoded = tokenizer(_pieces(text), add_special_tokens=False, return_attention_mask=False, verbose=False)
                parts.append(np.array([tokenizer.bos_token_id], np.int32))
                parts += [np.array(ids, np.int32) for ids in encoded["input_ids"]]
                done += len(text)
                report(done, total)
        np.save(folder / "ids.npy", np.concatenate(parts))
        marker.write_text(wanted)
    stream: np.ndarray = np.load(folder / "ids.npy", mmap_mode="r")
    return stream


def _pieces(text: str) -> list[str]:
    """Cut a text after lines; in one piece, 50 MB take a tokenizer 20 GB of memory and one core."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + _PIECE) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return pieces


def _tokenizer(name: str, corpora: Sequence[Corpus], folder: Path, identity: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    if name != NEW:
        if not Path(name).is_dir():
            raise CheckpointError(f"no checkpoint folder at `{name}` to take the tokenizer from", "--tokenizer new")
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        if tokenizer.bos_token_id is None:
            raise CheckpointError(f"the tokenizer of `{name}` has no BOS token", "--tokenizer new")
        return tokenizer
    marker, wanted = folder / "identity.json", json.dumps(identity)
    if not marker.is_file() or marker.read_text() != wanted:
        documents = tuple(document for corpus in corpora for document in corpus.documents)
        train_tokenizer(Corpus("", documents, "")).save_pretrained(folder)
        marker.write_text(wanted)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def new_model(recipe: Recipe, vocab_size: int) -> HopeEvalForCausalLM:
    """Return the untrained model of a recipe; all but the encoding follows from size, length and seed."""
    size, spec = parse_size(recipe.size), parse_encoding(recipe.encoding)
    config = HopeEvalConfig(
        vocab_size=vocab_size,
        hidden_size=size.d_model,
        intermediate_size=size.d_ff,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        num_key_value_heads=size.n_heads,
        max_position_embeddings=recipe.train_length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        encoding=spec.name,
        encoding_parameters=dict(spec.parameters),
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return HopeEvalForCausalLM(config)


@dataclass(frozen=True)
class Processes:
    """One of several processes that train a model together, each on a device of its own."""

    device: torch.device
    rank: int = 0
    world: int = 1


@contextlib.contextmanager
def _processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; without it, there is one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        if world > 1 and place.type == "cuda":
            place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise OptionError(
            f"the device `{device}` cannot be used: {str(error).splitlines()[0]}", "--device auto"
        ) from error
    if world == 1:
        yield Processes(place)
        return
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(place, distributed.get_rank(), world)
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


class Loop:
    """A training as a state that makes steps: weights, optimiser, and the number of steps made."""

    def __init__(self, recipe: Recipe, prepared: Prepared, processes: Processes, compiled: bool, step: int = 0) -> None:
        if recipe.batch_lines % processes.world:
            raise OptionError(
                f"{recipe.batch_lines} lines of a batch do not divide among {processes.world} processes",
                "change --batch-tokens",
            )
        self.recipe, self.prepared, self.processes, self.step = recipe, prepared, processes, step
        self.model = new_model(recipe, len(prepared.tokenizer)).to(processes.device)
        self.learning_rate = recipe.learning_rate or parse_size(recipe.size).learning_rate
        # Matrices decay, an encoding's own parameters never do.
        decays = {n: p.ndim > 1 and "encoding." not in n for n, p in self.model.named_parameters()}
        groups = [
            {"params": [p for n, p in self.model.named_parameters() if decays[n] is kind], "weight_decay": decay}
            for kind, decay in ((True, 0.1), (False, 0.0))
        ]
        fused = processes.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95), fused=fused)
        forward: Any = self.model
        if processes.world > 1:
            forward = nn.parallel.DistributedDataParallel(forward)
        self._forward = torch.compile(forward, dynamic=False) if compiled else forward

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then half a cosine down to zero."""
        warm_up = max(1, self.recipe.n_steps // 30)
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        done = (step - warm_up) / max(1, self.recipe.n_steps - warm_up)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def batch(self, step: int) -> tuple[Tensor, Tensor, int]:
        """Return this process's ids and labels [B, L] of a step, and how many tokens all processes train on.

        Labels are -100 where nothing is trained.
        """
        n, lines, processes = self.recipe.batch_lines, self.prepared.lines, self.processes
        first, share = step * n, n // processes.world
        n_scored = int(lines.scored[first : first + n].sum())
        mine = slice(first + processes.rank * share, first + (processes.rank + 1) * share)
        ids_BL = torch.from_numpy(lines.ids[mine].astype(np.int64))
        labels_BL = torch.where(torch.from_numpy(np.array(lines.scored[mine])), ids_BL, -100)
        if processes.device.type == "cuda":
            ids_BL, labels_BL = ids_BL.pin_memory(), labels_BL.pin_memory()
        return (
            ids_BL.to(processes.device, non_blocking=True),
            labels_BL.to(processes.device, non_blocking=True),
            n_scored,
        )

    def make_step(self) -> tuple[Tensor, Tensor]:
        """Make one step of the optimiser; return loss [nats] and norm of the gradient before it."""
        self.model.train()
        ids_BL, labels_BL, n_scored = self.batch(self.step)
        device = self.processes.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            items = torch.tensor(n_scored, device=device)
            loss = self._forward(input_ids=ids_BL, labels=labels_BL, num_items_in_batch=items, use_cache=False).loss
        # Processes average their gradients, and each has summed over its own share only.
        (loss * self.processes.world).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.detach(), norm

    def save(self, path: Path) -> None:
        """Write weights and optimiser; a kill at any time leaves the old file or the new one."""
        part = path.with_suffix(".part")
        torch.save(
            {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, part
        )
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on where `save` was called."""
        state = torch.load(path, map_location=self.processes.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


class _Log:
    """training.jsonl, and what it takes to write it."""

    def __init__(self, path: Path, main: bool) -> None:
        self.path, self.main = path, main
        self.evaluations: list[dict[str, Any]] = []
        self.seconds = 0.0

    def start(self, step: int) -> None:
        """Forget what an interrupted training wrote after the checkpoint of that step."""
        kept = []
        if self.path.is_file() and step:
            for text in self.path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    break
                if line["step"] > step:
                    break
                kept.append(text + "\n")
                self.seconds = line.get("seconds", self.seconds)
                self.evaluations += [line] if "nll" in line else []
        if self.main:
            self.path.write_text("".join(kept))
        self._start = time.perf_counter() - self.seconds

    def write(self, line: dict[str, Any]) -> None:
        self.seconds = round(time.perf_counter() - self._start, 2)
        line = {**line, "seconds": self.seconds}
        if "nll" in line:
            self.evaluations.append(line)
        if self.main:
            with self.path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


def _run(loop: Loop, log: _Log, out: Path, save_steps: int, report: Report) -> None:
    """Make all steps that are left, and log, evaluate and save on the way."""
    recipe, main = loop.recipe, loop.processes.rank == 0
    checkpoint = out / ".work" / "checkpoint.pt"
    if main:
        checkpoint.parent.mkdir(exist_ok=True)
        check_disk(out, 3 * 12 * sum(p.numel() for p in loop.model.parameters()), "checkpoints")
    if checkpoint.is_file():
        loop.load(checkpoint)
    log.start(loop.step)
    tokens = recipe.batch_lines * recipe.train_length
    log_steps, evaluation_steps = max(1, min(10, recipe.n_steps // 10)), max(1, recipe.n_steps // 10)
    # Never between two lines of the log, whose losses would be lost.
    save_steps = math.ceil(save_steps / log_steps) * log_steps
    losses: list[Tensor] = []
    report(loop.step * tokens, recipe.n_tokens)
    while loop.step < recipe.n_steps:
        loss, norm = loop.make_step()
        losses.append(loss)
        at = {"step": loop.step, "tokens": loop.step * tokens}
        if loop.step % log_steps == 0 or loop.step == recipe.n_steps:
            mean = torch.stack(losses).mean()
            losses.clear()
            if loop.processes.world > 1:
                distributed.all_reduce(mean)
            _check_loss(float(mean), loop)
            rate = loop.rate(loop.step - 1)
            log.write({**at, "loss": float(mean), "learning_rate": rate, "grad_norm": float(norm)})
        if main and (loop.step % evaluation_steps == 0 or loop.step == recipe.n_steps):
            log.write({**at, "nll": _evaluated(loop.model, loop.prepared, recipe.train_length)})
        if main and loop.step % save_steps == 0:
            loop.save(checkpoint)
        report(loop.step * tokens, recipe.n_tokens)


def _check_loss(loss: float, loop: Loop) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss of `{loop.recipe.encoding}` is {loss} at step {loop.step}",
            f"--learning-rate {loop.learning_rate / 2:g}",
        )


def _evaluated(module: nn.Module, prepared: Prepared, train_length: int) -> dict[str, float]:
    """Return the nll [nats] of held-out text at 1, 2 and 4 times the training length: of the second half of each."""
    model = LanguageModel("", module, prepared.tokenizer, train_length)
    longest = min(4 * train_length, model.max_length or 4 * train_length)
    start = prepared.tokenizer.bos_token_id
    samples = [Sample([start], ids[: longest - 1]) for ids in prepared.evaluated if len(ids) >= longest - 1]
    if not samples:
        return {}
    nll_NL = np.stack([score.nll for score in model.score(samples)])
    return {
        f"{times}x": round(float(nll_NL[:, times * train_length // 2 - 1 : times * train_length - 1].mean()), 4)
        for times in (1, 2, 4)
        if times * train_length <= longest
    }


def _claim(recipe: Recipe, out: Path, force: bool) -> bool:
    """Make `out` the folder of this recipe; return whether it is trained already.

    Raises TrainingError if it holds something else.
    """
    path, wanted = out / "recipe.json", json.dumps(asdict(recipe), indent=1)
    if force and out.is_dir() and path.is_file():
        shutil.rmtree(out)
    try:
        if path.is_file():
            if path.read_text() != wanted:
                own, asked = json.loads(path.read_text()), json.loads(wanted)
                differ = ", ".join(key for key in asked if own.get(key) != asked[key])
                raise TrainingError(f"`{out}` is a training with other {differ}", "choose another --out, or --force")
        elif out.is_dir() and any(child.name != ".work" and ".part" not in child.name for child in out.iterdir()):
            raise TrainingError(f"`{out}` is not empty", "choose another --out")
        else:
            out.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".part{os.getpid()}")
            part.write_text(wanted)
            part.replace(path)
    except OSError as error:
        raise TrainingError(f"cannot write to `{out}`: {error}", "choose another --out") from error
    return (out / "training.json").is_file()


def _finish(loop: Loop, log: _Log, out: Path, command: str) -> None:
    """Write model, tokenizer and facts, and remove what is not needed any more."""
    recipe, prepared, model, device = loop.recipe, loop.prepared, loop.model, loop.processes.device
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    facts = {
        **asdict(recipe),
        "n_steps": recipe.n_steps,
        "tokens": recipe.n_tokens,
        "learning_rate": loop.learning_rate,
        "n_parameters": sum(sizes.values()),
        "n_encoding_parameters": sum(n for name, n in sizes.items() if "encoding." in name),
        "corpora": {corpus.name: corpus.fingerprint for corpus in prepared.corpora},
        "shares": SHARES,
        "tasks": {name: task_class(name)().fingerprint for name in SHARES},
        "nll": log.evaluations[-1]["nll"] if log.evaluations else {},
        "seconds": log.seconds,
        **origin(device, command),
    }
    if device.type == "cuda":
        facts["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    with quiet():
        model.to(torch.bfloat16).save_pretrained(out)
        prepared.tokenizer.save_pretrained(out)
    part = out / "training.json.part"
    part.write_text(json.dumps(facts, indent=1) + "\n")
    part.replace(out / "training.json")
    shutil.rmtree(out / ".work", ignore_errors=True)
