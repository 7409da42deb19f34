"""Material: the texts or examples of a measurement."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from hope_eval.data.corpora import Corpus, load_corpus
from hope_eval.data.labelled import LabelledTexts, load_labelled
from hope_eval.data.vocabulary import Vocabulary
from hope_eval.errors import OptionError
from hope_eval.model.tokens import PrefixPolicy, prefix_token
from hope_eval.protocols import Protocol
from hope_eval.task import Task

What = TypeVar("What", bound=Task | Protocol)


@dataclass(frozen=True)
class Material:
    """Texts or labelled texts: of the user, or the default."""

    corpus: Corpus | None = None
    examples: LabelledTexts | None = None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return next((data.name for data in (self.examples, self.corpus) if data is not None), "generated")

    @property
    def fingerprint(self) -> str:
        """A hash of its contents."""
        return next((data.fingerprint for data in (self.examples, self.corpus) if data is not None), "")


# For tasks that generate all they need.
NOTHING = Material()


def vocabulary_for(
    tokenizer: Any,
    task: Task,
    material: Material = NOTHING,
    chat: bool | None = None,
    prefix: PrefixPolicy = "auto",
    seed: int = 0,
) -> Vocabulary:
    """The tokenizer of a model as a task sees it.

    chat: whether prompts go into the chat template; None: if the tokenizer has one and the task is in words.

    Raises OptionError if the tokenizer has no template, or no prefix token of that kind.
    """
    if chat is None:
        chat = task.chat and bool(getattr(tokenizer, "chat_template", None))
    texts = [document.text for document in material.corpus.in_order(seed)] if material.corpus else []
    return Vocabulary(tokenizer, prefix_token(tokenizer, prefix), chat, texts, material.examples)


def material_for(
    what: What, data: str | None, text_field: str, label_field: str, encoding: str = "", split: int | None = None
) -> tuple[What, Material]:
    """A task or protocol as it uses the data, and the texts or examples that it needs.

    data:     the user's data; None: the sources of Python's standard library, where texts are needed.
    encoding: of texts in files; empty: UTF-8, or by the mark at their beginning.
    split:    tokens of a piece, to cut texts into; None: whole texts.

    Raises OptionError for data that a task cannot use, CorpusError for files that cannot be read.
    """
    if what.uses == "examples":
        return what, Material(examples=load_labelled(data, text_field, label_field)) if data is not None else Material()
    if data is not None and not what.uses:
        raise OptionError(f"`{what}` generates its texts, and takes no --data", "leave --data out")
    if data is not None and "haystack" in {field.name for field in dataclasses.fields(what)}:
        what = dataclasses.replace(what, haystack="text")  # type: ignore[call-arg]
    name = "python" if data is None else data
    needs_texts = what.uses == "text" and getattr(what, "haystack", "text") == "text"
    if not needs_texts:
        return what, Material()
    corpus = load_corpus(name, text_field, encoding)
    return what, Material(corpus.split(split) if split else corpus)
