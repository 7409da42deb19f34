"""Samples of tasks, as text for people: context, questions and right answers."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from hope_eval.evaluation.material import material_for, vocabulary_for
from hope_eval.model.checkpoint import load_tokenizer
from hope_eval.task import generator, parse_task, task_class, task_names


@dataclass(frozen=True)
class ShownQuestion:
    """A question as text."""

    facts: str
    query: str
    target: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class ShownSample:
    """A prompt as text."""

    task: str
    one_line: str
    facts: str
    context: str
    questions: tuple[ShownQuestion, ...]


def sample(
    name: str,
    model: str,
    length: int,
    seed: int = 0,
    index: int = 0,
    data: str | None = None,
    text_field: str = "text",
    text_encoding: str = "",
    split: int | None = None,
    label_field: str = "label",
    chat: bool | None = None,
) -> ShownSample:
    """A sample of a task, in the tokens of a model, exactly as it is asked.

    Raises TaskError, ContextTooShortError, CheckpointError, CorpusError or OptionError.
    """
    task, material = material_for(parse_task(name), data, text_field, label_field, text_encoding, split)
    vocabulary = vocabulary_for(load_tokenizer(model), task, material, chat, seed=seed)
    prompt = task.prompt(vocabulary, length, generator("test", str(task), seed, index))
    questions = tuple(
        ShownQuestion(
            ", ".join(f"{key} {_short(value)}" for key, value in question.meta.items()),
            vocabulary.text(question.query),
            vocabulary.text(question.target),
            tuple(vocabulary.text(choice) for choice in question.choices),
        )
        for question in prompt.questions
    )
    n = len(prompt.context) + max(map(len, prompt.questions)) + task.n_new
    facts = f"{n} of {length} tokens, {len(questions)} question{'s' * (len(questions) > 1)} on one context"
    return ShownSample(str(task), task.one_line, facts, vocabulary.text(prompt.context), questions)


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def describe_all() -> list[dict[str, Any]]:
    """One record for every task of this project."""
    records = []
    for name in task_names():
        cls = task_class(name)
        defaults = (f"{f.name}={f.default}" for f in dataclasses.fields(cls) if f.name != "control")
        records.append(
            {
                "task": name,
                "command": cls.family,
                "asks to": cls.one_line,
                "source": f"arXiv {cls.source}" if cls.source else "ours",
                "parameters": ", ".join(defaults),
            }
        )
    return sorted(records, key=lambda record: ("copy", "retrieve", "fewshot").index(record["command"]))
