"""Tasks that are asked of a model, as tests do it: the prompts of a run, and the run."""

from pathlib import Path

from conftest import story
from fakes import zoo_tokenizer

from hope_eval.data.corpora import Corpus, Document
from hope_eval.evaluation import questions as ask
from hope_eval.evaluation.questions import Material
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Prompt, Task, generator

TEXTS = Corpus("stories", tuple(Document(str(n), story(600, 1000 * n)) for n in range(2)), "stories")


def material(task: Task) -> Material:
    return Material(TEXTS) if getattr(task, "haystack", "text") == "text" and task.uses == "text" else Material()


def prompts(task: Task, lengths, n: int, seed: int = 0) -> list[Prompt]:
    """Return the prompts that `run` asks: what a fake is told."""
    vocabulary = ask.vocabulary_for(zoo_tokenizer(), task, material(task))
    return [
        task.prompt(vocabulary, length, generator("test", str(task), seed, index))
        for length in lengths
        for index in range(n)
    ]


def run(model: LanguageModel, task: Task, lengths, root: Path, n: int | None = 2, *, vocabulary=None, **options):
    """Ask a model, without controls unless they are asked for, and return the run."""
    options = {"material": material(task), "controls": False, **options}
    vocabulary = vocabulary or ask.vocabulary_for(model.tokenizer, task, options["material"])
    store, _ = ask.ask(model, task, lengths, root, vocabulary, n_contexts=n, **options)
    return store
