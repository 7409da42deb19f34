"""Runs as tests make them: prompts and questions of a task, and perplexity of documents."""

from pathlib import Path

from conftest import story
from fakes import zoo_tokenizer

from hope_eval.data.corpora import Corpus, Document
from hope_eval.evaluation.loop import measure
from hope_eval.evaluation.material import Material, vocabulary_for
from hope_eval.evaluation.perplexity import Perplexity
from hope_eval.evaluation.questions import Questions
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import Protocol
from hope_eval.runs.processes import ALONE
from hope_eval.runs.store import RunStore
from hope_eval.runs.token_store import TokenStore
from hope_eval.task import Prompt, Task, generator

TEXTS = Corpus("stories", tuple(Document(str(n), story(600, 1000 * n)) for n in range(2)), "stories")


def silent(done: int, total: int) -> None:
    """Tell nobody of progress."""


def material(task: Task) -> Material:
    return Material(TEXTS) if getattr(task, "haystack", "text") == "text" and task.uses == "text" else Material()


def prompts(task: Task, lengths, n: int, seed: int = 0) -> list[Prompt]:
    """Return the prompts that `run` asks: what a fake is told."""
    vocabulary = vocabulary_for(zoo_tokenizer(), task, material(task))
    return [
        task.prompt(vocabulary, length, generator("test", str(task), seed, index))
        for length in lengths
        for index in range(n)
    ]


def run(
    model: LanguageModel, task: Task, lengths, root: Path, n: int | None = 2, *, ranks=ALONE, until=None, report=silent,
    **options,
) -> RunStore:  # fmt: skip
    """Ask a model, without controls unless they are asked for, and return the run."""
    options = {"material": material(task), "controls": False, **options}
    questions = Questions.of(model, task, lengths, n_contexts=n, **options)
    return measure(questions, model, root, report, ranks=ranks, until=until)


def read(
    model: LanguageModel, corpus: Corpus, protocol: Protocol, lengths, root: Path, *, ranks=ALONE, until=None,
    report=silent, **options,
) -> TokenStore:  # fmt: skip
    """Measure perplexity, and return the tokens of the run."""
    perplexity = Perplexity.of(model, protocol, lengths, corpus, **options)
    return TokenStore(measure(perplexity, model, root, report, ranks=ranks, until=until))
