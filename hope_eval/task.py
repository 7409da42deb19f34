"""Sample, Prompt and Task: what a model is asked. All that a task file may import.

A task makes prompts of any length; a prompt is a context and questions on it. Evaluation asks each question by itself,
and reads the context once for all of them; training asks them one after the other, in one line:

    evaluated   context query target · context query target · …      every line as long as asked for
    trained on  context query target query target query target       one line as long as asked for

Only targets are scored, and only targets are trained on.

A file of `tasks/` holds one task, or a few that are close; a task's name is that of its class: `CopyText` is
`copy_text`. On a command line its parameters follow: `needle:n_needles=4`.
"""

import dataclasses
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from hope_eval.data.vocabulary import PROSE, Examples, Haystack, Ids, Vocabulary, lay_out
from hope_eval.errors import ContextTooShortError, TaskError, did_you_mean
from hope_eval.plugins import classes_in, module_from_file

__all__ = [
    "PROSE",
    "Examples",
    "Grade",
    "Haystack",
    "Ids",
    "Prompt",
    "Question",
    "Sample",
    "Task",
    "TaskError",
    "Vocabulary",
    "generator",
    "lay_out",
]

Family = Literal["copy", "retrieve", "fewshot"]
FAMILIES: tuple[str, ...] = get_args(Family)

# What a free answer is worth, by metric: {"strict": 1.0, "loose": 1.0}.
Grade = dict[str, float]

_HERE = Path(__file__).parent
# Beside the package in a checkout, within it where it is installed.
FOLDER = next(folder for folder in (_HERE / "tasks", _HERE.parent / "tasks") if folder.is_dir())


@dataclass(frozen=True)
class Sample:
    """Token ids to read, and those among them to score.

        context  query  target              one forward reads the whole line; the nll of every
        <s> a b  c d    e f g               target token is scored, given all tokens before it

    context: ids that are read and not scored; at least one, since the first token of a line has no prediction.
    target:  ids that are scored, in order.
    query:   ids between them that are read and not scored; samples with one context differ from here on.
    unread:  the last target ids that are scored but not read, 0 or 1. The prediction of a token needs only the
             tokens before it, so this matters where the number of tokens read is itself a definition (lm-eval's
             rolling windows) or changes the model (dynamic NTK).
    meta:    what results are sliced by: document, position, depth, distance…
    """

    context: Ids
    target: Ids
    query: Ids = ()
    unread: int = 0
    meta: Mapping[str, object] = field(default_factory=dict)

    @property
    def n_before(self) -> int:
        """Tokens before the target."""
        return len(self.context) + len(self.query)

    @property
    def n_read(self) -> int:
        """Tokens that the model reads."""
        return self.n_before + len(self.target) - self.unread


@dataclass(frozen=True)
class Question:
    """What is asked on a context.

    query:   ids to read.
    target:  ids to be predicted; of a task with free answers, none.
    meta:    what results are sliced by, and what a free answer is graded by.
    choices: other answers, which compete with the target: the likeliest is the one chosen. Of a question with a single
             right answer and nothing to choose from: a counterfactual, whose likelihood tells how much is known.
    """

    query: Ids
    target: Ids
    meta: Mapping[str, object] = field(default_factory=dict)
    choices: tuple[Ids, ...] = ()

    @property
    def answers(self) -> tuple[Ids, ...]:
        """The target and all other answers."""
        return (self.target, *self.choices)

    def __len__(self) -> int:
        """Tokens of the question and its longest answer."""
        return len(self.query) + max(map(len, self.answers))


@dataclass(frozen=True)
class Prompt:
    """A context, and the questions on it."""

    context: Ids
    questions: tuple[Question, ...]

    def samples(self) -> list[Sample]:
        """Return a sample for each question; all share the context."""
        return [Sample(self.context, q.target, q.query, meta=q.meta) for q in self.questions]

    def row(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the context and of all questions after it [L], and which of them are targets, bool [L]."""
        parts: list[tuple[Ids, bool]] = [(self.context, False)]
        for question in self.questions:
            parts += [(question.query, False), (question.target, True)]
        ids = np.concatenate([np.asarray(part, np.int64) for part, _ in parts])
        scored = np.repeat([flag for _, flag in parts], [len(part) for part, _ in parts])
        return ids, scored


@dataclass(frozen=True)
class Task(ABC):
    """A kind of question. Its fields are its parameters; their values and `version` are its identity.

    source:   the paper that defines it, as an arXiv id; empty for one of our own.
    version:  raise it when the same parameters make other prompts.
    one_line: what it asks.
    family:   the command that measures it.
    metric:   the one that counts: `accuracy` (all tokens of the answer, greedily), `choice_accuracy` (the likeliest of
              the answers offered), or one of its grades.
    chat:     whether a chat model is asked in its template.
    controls: variants that say what a score is worth. `floor`: what the answer depends on is missing; `ceiling`: there
              is nothing else in the context. Each is a value of a field `control`, which is empty otherwise.
    uses:     what a user may bring along with --data: `text` to hide things in, `examples` with labels; empty: nothing.
    n_new:    tokens of a free answer, which the model writes and `grade` grades; 0: answers are fixed.
    limits:   of parameters: least and greatest number, or the words there are.

    Raises TaskError for a parameter that is out of its limits.
    """

    source: ClassVar[str]
    version: ClassVar[int]
    one_line: ClassVar[str]
    family: ClassVar[Family]
    metric: ClassVar[str] = "accuracy"
    chat: ClassVar[bool] = True
    controls: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[str] = ""
    n_new: ClassVar[int] = 0
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def __post_init__(self) -> None:
        for key, limit in self.limits.items():
            value = getattr(self, key)
            if isinstance(value, str):
                if value not in limit:
                    allowed = ", ".join(filter(None, limit))
                    raise TaskError(f"`{key}` of `{self.name}` is no `{value}`", f"one of {allowed}")
            elif not limit[0] <= value <= limit[1]:
                raise TaskError(
                    f"`{key}` of `{self.name}` is {value}", f"from {limit[0]:g} to {limit[1]:g}: {self.name}:{key}=…"
                )

    @abstractmethod
    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:
        """Return a prompt whose longest question makes it `length` tokens long, everything counted.

        What is asked for is drawn before the filler, so that it is the same at all lengths. Under the control
        `ceiling`, the prompt is as short as it goes.

        joined: all questions go into one line of that length, for training; otherwise each by itself.

        Raises ContextTooShortError, naming the least length that will do.
        """

    def grade(self, answer: str, meta: Mapping[str, Any]) -> Grade:
        """Return what a free answer is worth, given the meta of its question."""
        raise NotImplementedError

    def varied(self, rng: np.random.Generator, length: int) -> "Task":
        """Return the task with other parameters that fit into `length`, for training on more than one."""
        return self

    def room(self, vocabulary: Vocabulary, length: int, questions: Sequence[Question], joined: bool, least: int) -> int:
        """Return how many tokens are left for the context, after the prefix and the questions.

        least: tokens that it must have. Raises ContextTooShortError if it has fewer.
        """
        sizes = [len(question) for question in questions]
        fixed = len(vocabulary.start) + (sum(sizes) if joined else max(sizes)) + self.n_new
        if length < fixed + least:
            raise ContextTooShortError(self.name, length, fixed + least)
        return length - fixed

    @property
    def name(self) -> str:
        """The name of its class in lower case: `copy_text`."""
        return task_name(type(self))

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that are not at their defaults."""
        values = dataclasses.asdict(self)
        return {f.name: values[f.name] for f in dataclasses.fields(self) if values[f.name] != f.default}

    def __str__(self) -> str:
        """As it is written on a command line: `needle:n_needles=4`."""
        given = ",".join(f"{key}={value}" for key, value in self.parameters.items() if key != "control")
        return f"{self.name}:{given}" if given else self.name

    @property
    def fingerprint(self) -> str:
        """A hash of name, version and parameters, 16 hexadecimal digits."""
        identity = [self.name, self.version, dataclasses.asdict(self)]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def generator(*key: object) -> np.random.Generator:
    """Return the random generator of one prompt: of (split, task, seed, …, index), and of nothing else."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def task_name(cls: type[Task]) -> str:
    """Return the name of a task: that of its class, in lower case with underscores."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def task_names(family: str = "") -> list[str]:
    """Return the names of the tasks of this project, of one family or of all."""
    return [name for name, cls in _ours() if family in ("", cls.family)]


def _ours() -> Iterator[tuple[str, type[Task]]]:
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        for cls in classes_in(module_from_file(path, "hope_eval_tasks"), Task):  # type: ignore[type-abstract]
            yield task_name(cls), cls


def task_class(name: str) -> type[Task]:
    """Return the class of a task by its name, or by the path of a Python file that defines one.

    Of a file that defines several, the name of one follows: `my.py/copy_text`. Raises TaskError if there is none.
    """
    if ".py" in name:
        file, _, wanted = name.partition(".py")
        path = Path(f"{file}.py").expanduser()
        if not path.is_file():
            raise TaskError(f"no file `{path}`", "--task takes a name or the path of a Python file")
        defined = classes_in(module_from_file(path, "hope_eval_tasks_of_ones_own"), Task)  # type: ignore[type-abstract]
        known = {task_name(cls): cls for cls in defined}
        wanted = wanted.removeprefix("/")
        if not wanted and len(known) == 1:
            return next(iter(known.values()))
        hint = f"it has {', '.join(known)}: {path}/{next(iter(known))}" if known else "derive a dataclass from Task"
        if wanted not in known:
            raise TaskError(f"`{path}` defines {len(known)} tasks, and `{wanted}` is none of them", hint)
        return known[wanted]
    known = dict(_ours())
    if name not in known:
        raise TaskError(
            f"no task is called `{name}`",
            did_you_mean(name, known, "`hope-eval tasks` lists all, and a Python file may define one"),
        )
    return known[name]


def parse_task(text: str) -> Task:
    """Read `name[:parameter=value,…]`; `path/to/mine.py` is a name too.

    Raises TaskError for an unknown name or parameter and for a value that does not fit.
    """
    name, _, rest = text.partition(":")
    cls = task_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "control"}
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in fields:
            allowed = f"it has {', '.join(fields)}" if fields else "it has none"
            raise TaskError(f"`{name}` has no parameter `{key}`", did_you_mean(key, fields, allowed))
        kind: Any = type(fields[key].default)
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        try:
            given[key] = words[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise TaskError(
                f"`{key}` of `{name}` is a {kind.__name__}, got `{value}`", f"{name}:{key}={fields[key].default}"
            ) from None
    return cls(**given)
