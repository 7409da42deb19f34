"""Sample, Prompt, Question and Task: what a model is asked.

A task file imports this module, and nothing else of hope-eval.

A task makes prompts of any length. A prompt is a context, and questions on it. Evaluation asks each question separately
and reads the context once for all of them; training puts all questions into one row:

    evaluated   context query target · context query target · …      each has the length that was asked for
    trained on  context query target query target query target       the row has the length that was asked for

Only targets are scored, and only targets are trained on.

A file of `tasks/` has one task, or a few that are similar. The name of a task is that of its class: `CopyText` is
`copy_text`. On a command line its parameters follow the name: `needle:n_needles=4`.
"""

import dataclasses
import hashlib
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from hope_eval.data.labelled import LabelledTexts
from hope_eval.data.vocabulary import PROSE, Haystack, Ids, Vocabulary, lay_out
from hope_eval.errors import ContextTooShortError, TaskError, did_you_mean
from hope_eval.lengths import number_text
from hope_eval.plugins import classes_in, module_from_file

__all__ = [
    "PROSE",
    "Examples",
    "Grade",
    "Haystack",
    "Ids",
    "LabelledTexts",
    "Prompt",
    "Question",
    "Sample",
    "Task",
    "TaskError",
    "Vocabulary",
    "asked_together",
    "generator",
    "lay_out",
]

# First part of the names of modules with tasks of users.
_OWN = "hope_eval_tasks_of_ones_own"

Family = Literal["copy", "retrieve", "fewshot"]
FAMILIES: tuple[str, ...] = get_args(Family)

# Value of a free answer, by metric: {"strict": 1.0, "loose": 1.0}. Higher is better.
Grade = dict[str, float]

# The older name, which users' task files may import.
Examples = LabelledTexts

_HERE = Path(__file__).resolve().parent
# Next to the package in a checkout, inside it where it is installed.
FOLDER = next(folder for folder in (_HERE / "tasks", _HERE.parent / "tasks") if folder.is_dir())


@dataclass(frozen=True)
class Sample:
    """Token ids to read, and those among them to score.

        context  query  target              one forward reads all of it; the nll of every target
        <s> a b  c d    e f g               token is scored, given all tokens before it

    context: ids that are read and not scored; at least one, because the first token has no prediction.
    target:  ids that are scored, in order.
    query:   ids between them that are read and not scored; samples that share a context differ from here on.
    unread:  number of last target ids that are scored but not read, 0 or 1. The prediction of a token needs only the
             tokens before it. So this matters only where the number of tokens read is part of a definition (lm-eval's
             rolling windows) or changes the model (dynamic NTK).
    meta:    facts to slice results by: document, position, depth, distance…
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
    """A question on a context.

    query:   ids to read.
    target:  ids to predict; none if the answer is free.
    meta:    facts to slice results by, and to grade a free answer with.
    choices: other answers, which compete with the target: the model chooses the likeliest. If the question offers no
             choice, they hold one wrong answer, to compare its likelihood with that of the right one.
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
    """A context, and questions on it."""

    context: Ids
    questions: tuple[Question, ...]

    def samples(self) -> list[Sample]:
        """One sample for each question; all share the context."""
        return [Sample(self.context, q.target, q.query, meta=q.meta) for q in self.questions]

    def row(self) -> tuple[np.ndarray, np.ndarray]:
        """Training row: ids of the context and all questions after it [L], and which are targets, bool [L]."""
        parts: list[tuple[Ids, bool]] = [(self.context, False)]
        for question in self.questions:
            parts += [(question.query, False), (question.target, True)]
        ids = np.concatenate([np.asarray(part, np.int64) for part, _ in parts])
        scored = np.repeat([flag for _, flag in parts], [len(part) for part, _ in parts])
        return ids, scored


@dataclass(frozen=True)
class Task(ABC):
    """A kind of question. Its fields are its parameters; their values and `version` are its identity.

    source:   arXiv id of the paper that defines it; empty if there is none.
    version:  raise it when the same parameters make other prompts.
    one_line: the task in one line, as an instruction to the model.
    family:   the command that measures it.
    metric:   the main metric: `accuracy` (all tokens of the answer are right, greedily), `choice_accuracy` (the
              likeliest of the answers is the right one), or one of the names that `grade` gives.
    chat:     whether a chat model is asked in its chat template.
    controls: variants that put a score in context. `floor`: the information for the answer is missing; `ceiling`: the
              context contains nothing else. Each is a value of the field `control`, which is empty otherwise.
    above:    `floor`, if this control is always asked, on every context; its score is subtracted from the main metric
              context by context, and the difference, `above_floor`, is the headline. Empty: no.
    arms:     a fact of its questions (`nearer`) whose parts tables always show apart; empty: none.
    readers:  facts of its questions that hold the score of a reader without a model. `chance` is that of guessing;
              others (`lexical`) are printed below tables by their names.
    uses:     data that --data may give: `text` (a haystack), `examples` (labelled texts); empty: none.
    n_new:    most tokens of a free answer, which the model writes and `grade` grades; 0: answers are fixed.
    limits:   of parameters: the smallest and the largest number, or all allowed words.

    Raises TaskError for a parameter outside its limits.
    """

    source: ClassVar[str]
    version: ClassVar[int]
    one_line: ClassVar[str]
    family: ClassVar[Family]
    metric: ClassVar[str] = "accuracy"
    chat: ClassVar[bool] = True
    controls: ClassVar[tuple[str, ...]] = ()
    above: ClassVar[str] = ""
    arms: ClassVar[str] = ""
    readers: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[str] = ""
    n_new: ClassVar[int] = 0
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def __post_init__(self) -> None:
        for key, limit in self.limits.items():
            value = getattr(self, key)
            if isinstance(value, str):
                if value not in limit:
                    allowed = ", ".join(filter(None, limit))
                    raise TaskError(f"`{key}` of `{self.name}` cannot be `{value}`", f"one of {allowed}")
            elif not limit[0] <= value <= limit[1]:
                raise TaskError(
                    f"`{key}` of `{self.name}` cannot be {value}",
                    f"from {number_text(limit[0])} to {number_text(limit[1])}: {self.name}:{key}=…",
                )

    @abstractmethod
    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:
        """Prompt of `length` tokens, everything counted: prefix, context, the longest question and its answer.

        Draw the questions before the filler, so that they are the same at all lengths. Under the control `ceiling`, the
        prompt is as short as possible.

        joined: for training: the prompt fills a row, or a part of one, with all its questions one after another.

        Raises ContextTooShortError with the smallest length that works.
        """

    def grade(self, answer: str, meta: Mapping[str, Any]) -> Grade:
        """Value of a free answer, by metric, given the meta of its question."""
        raise NotImplementedError

    def varied(self, rng: np.random.Generator, length: int) -> "Task":
        """Task with other parameters that fit into `length`: training mixes them, whatever evaluation may ask for.

        If nothing fits, the task that takes the fewest tokens.
        """
        return self

    def room(self, vocabulary: Vocabulary, length: int, questions: Sequence[Question], joined: bool, least: int) -> int:
        """Tokens that remain for the context, after the prefix and the questions.

        least: tokens that the context needs. Raises ContextTooShortError if fewer remain.
        """
        sizes = [len(question) for question in questions]
        fixed = len(vocabulary.start) + (sum(sizes) if joined else max(sizes)) + self.n_new
        if length < fixed + least:
            raise ContextTooShortError(self.name, length, fixed + least)
        return length - fixed

    @property
    def shots_grow(self) -> bool:
        """Whether longer contexts hold more examples: then short ones are harder, and are no gate for long ones."""
        return False

    @property
    def name(self) -> str:
        """Name of its class in lower case: `copy_text`."""
        return task_name(type(self))

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters that differ from their defaults."""
        values = dataclasses.asdict(self)
        return {f.name: values[f.name] for f in dataclasses.fields(self) if values[f.name] != f.default}

    def __str__(self) -> str:
        """As written on a command line: `needle:n_needles=4`."""
        parameters = ",".join(f"{key}={value}" for key, value in self.parameters.items() if key != "control")
        return f"{self.name}:{parameters}" if parameters else self.name

    @property
    def fingerprint(self) -> str:
        """Hash of name, version and parameters, and of the file of a task of one's own; 16 hexadecimal digits."""
        identity = [self.name, self.version, dataclasses.asdict(self)]
        if is_own(type(self)):
            # Whoever writes one changes it before its version.
            source = Path(str(sys.modules[type(self).__module__].__file__)).read_bytes()
            identity.append(hashlib.sha256(source).hexdigest())
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def is_own(cls: type[Task]) -> bool:
    """Whether a task stands in a file of a user."""
    return cls.__module__.startswith(f"{_OWN}.")


def check_prompt(task: Task, prompt: object) -> Prompt:
    """Raise TaskError for a prompt of a task of one's own that cannot be asked."""
    if not isinstance(prompt, Prompt):
        raise TaskError(f"`prompt` of `{task}` gives {type(prompt).__name__}", "it must give a Prompt")
    if not is_own(type(task)):
        return prompt
    if not prompt.questions:
        raise TaskError(f"`prompt` of `{task}` gives no questions", "give Prompt(context, (Question(…),))")
    for question in prompt.questions:
        if not len(question.target) and not task.n_new:
            raise TaskError(f"a question of `{task}` has no target", "give Question(query, target), target: token ids")
        for ids in (prompt.context, question.query, question.target, *question.choices):
            array = np.asarray(ids)
            if len(array) and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= 1 << 31):
                raise TaskError(f"`prompt` of `{task}` gives {array.tolist()[:3]}…, which are no token ids",
                                "vocabulary.encode(text) gives ids")  # fmt: skip
    return prompt


def generator(*key: object) -> np.random.Generator:
    """Random generator of one prompt: it follows from (split, task, seed, …, index) and from nothing else."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def asked_together(questions: Sequence[Question], room: int, rng: np.random.Generator) -> list[int]:
    """Which questions stand in one row: as many as fit into `room` tokens, or fewer, at least one.

    A question may come again. If each came once, the answers that are left over would tell the next one.
    """
    order = rng.integers(len(questions), size=1 + room // min(map(len, questions)) if room > 0 else 1)
    fits = int(np.searchsorted(np.cumsum([len(questions[which]) for which in order]), room, side="right"))
    return [int(which) for which in order[: rng.integers(1, 1 + max(1, fits))]]


def task_name(cls: type[Task]) -> str:
    """Name of a task: that of its class, in lower case with underscores."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def task_names(family: str = "") -> list[str]:
    """Names of the tasks of this project, of one family or of all."""
    return [name for name, cls in _bundled().items() if family in ("", cls.family)]


def _bundled() -> dict[str, type[Task]]:
    """Classes of the tasks of this project, by name."""
    return {name: cls for path in sorted(FOLDER.glob("[a-z]*.py")) for name, cls in _defined(path).items()}


def _defined(path: Path) -> dict[str, type[Task]]:
    """Classes of the tasks that a file defines, by name."""
    package = "hope_eval_tasks" if path.parent == FOLDER else _OWN
    classes = classes_in(module_from_file(path, package), Task)  # type: ignore[type-abstract]
    return {task_name(cls): cls for cls in classes}


def task_class(name: str) -> type[Task]:
    """Class of a task, by its name or by the path of a Python file that defines it.

    If the file defines several tasks, the name of one follows: `my.py/copy_text`.

    Raises TaskError if there is no such task, or if a task of a user's file has the name of a bundled one.
    """
    if ".py" in name:
        return _class_in_file(name)
    bundled = _bundled()
    if name not in bundled:
        raise TaskError(
            f"no task is called `{name}`",
            did_you_mean(name, bundled, "`hope-eval tasks` lists all; the path of a Python file works too"),
        )
    return bundled[name]


def _class_in_file(name: str) -> type[Task]:
    file, _, wanted = name.partition(".py")
    path = Path(f"{file}.py").expanduser().resolve()
    if not path.is_file():
        raise TaskError(f"there is no file `{file}.py`", "--task takes a name, or the path of a Python file")
    classes, wanted = _defined(path), wanted.removeprefix("/")
    if not classes:
        raise TaskError(f"`{file}.py` defines no task", "derive a dataclass from hope_eval.task.Task")
    if not wanted and len(classes) > 1:
        raise TaskError(
            f"`{file}.py` defines {len(classes)} tasks: {', '.join(classes)}",
            f"name one of them: {file}.py/{next(iter(classes))}",
        )
    wanted = wanted or next(iter(classes))
    if wanted not in classes:
        raise TaskError(
            f"`{file}.py` defines no task `{wanted}`", f"it has {', '.join(classes)}: {file}.py/{next(iter(classes))}"
        )
    if path.parent != FOLDER and wanted in _bundled():
        # Its runs would have the names of runs of the bundled task, and be mistaken for them.
        raise TaskError(
            f"`{file}.py` defines a task `{wanted}`, and hope-eval has a task of this name", "rename the class"
        )
    missing = [name for name in ("source", "version", "one_line") if not hasattr(classes[wanted], name)]
    if missing:
        raise TaskError(
            f"the task `{wanted}` of `{path.name}` lacks {', '.join(missing)}",
            'write them into the class: source, version, one_line = "", 1, "say a word again"',
        )
    return classes[wanted]


def parse_task(text: str) -> Task:
    """Read `name[:parameter=value,…]`; the name may be `path/to/mine.py`.

    Raises TaskError for an unknown name or parameter, and for a value that is not valid.
    """
    name, _, rest = text.partition(":")
    cls = task_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "control"}
    parameters: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in fields:
            allowed = f"it has {', '.join(fields)}" if fields else "it has no parameters"
            raise TaskError(f"`{name}` has no parameter `{key}`", did_you_mean(key, fields, allowed))
        kind: Any = type(fields[key].default)
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        try:
            parameters[key] = words[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise TaskError(
                f"`{key}` of `{name}` must be of type {kind.__name__}, got `{value}`",
                f"{name}:{key}={fields[key].default}",
            ) from None
    return cls(**parameters)
