"""Instructions at a distance: one or more instructions, then text about other things, then a topic to write about.

    <s> Instruction: Use no commas. End with the word marble.
    The boats come home at noon. The hills are far away. …
    Follow the instruction above. Write a few sentences about a storm at sea.        the model writes; code checks

The answer is free, and code can check every instruction. `strict`: the answer follows all instructions. `loose`: the
answer does, or what is left of it without its first line, its last line, or asterisks. `followed`: the share of the
instructions that it follows. An answer of fewer than three words follows none. The control `floor` leaves the
instructions out: some are followed by chance.

Source: Zhou et al., 2023, "IFEval", arXiv 2311.07911 (the grading); instructions and wording are ours.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hope_eval.task import Grade, Prompt, Question, Task, TaskError, Vocabulary

WORDS = """
anchor autumn bridge candle castle copper engine feather forest garden harbour island lantern marble meadow
mirror ocean orange paper river silver stone thunder violin winter
""".split()  # noqa: SIM905
TOPICS = [
    "a storm at sea",
    "a walk in the city",
    "an old house",
    "a day at school",
    "a long journey",
    "the work of a baker",
    "a lost dog",
    "the first snow",
    "a garden in spring",
    "a train at night",
    "a visit to the market",
    "the view from a tower",
]


@dataclass(frozen=True)
class Rule:
    """An instruction that code can check.

    text:  its wording; {word}, {n} and {letter} are drawn.
    check: whether an answer follows it, given what was drawn.
    about: its subject; two instructions with the same subject are never given together.
    """

    text: str
    check: Callable[[str, Mapping[str, Any]], bool]
    about: str


def _words(answer: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", answer)


def _has(answer: str, word: str) -> int:
    return [each.lower() for each in _words(answer)].count(word.lower())


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


def _n_sentences(answer: str) -> int:
    return len(re.findall(r"[.!?]+(?=\s|$)", answer.strip()))


RULES = {
    "upper": Rule("Write in upper-case letters only.", lambda a, _: a.upper() == a and a.lower() != a, "case"),
    "lower": Rule("Write in lower-case letters only.", lambda a, _: a.lower() == a and a.upper() != a, "case"),
    "no_comma": Rule("Use no commas.", lambda a, _: "," not in a, "comma"),
    "begin": Rule("Begin with the word {word}.", lambda a, x: _words(a)[0].lower() == x["word"], "beginning"),
    "end": Rule("End with the word {word}.", lambda a, x: _words(a)[-1].lower() == x["word"], "end"),
    "use": Rule("Use the word {word}.", lambda a, x: _has(a, x["word"]) > 0, "word"),
    "use_times": Rule("Use the word {word} exactly {n} times.", lambda a, x: _has(a, x["word"]) == x["n"], "word"),
    "avoid": Rule("Do not use the word the.", lambda a, _: _has(a, "the") == 0, "the"),
    "at_least": Rule("Write at least {n}0 words.", lambda a, x: len(_words(a)) >= 10 * x["n"], "size"),
    "at_most": Rule("Write at most {n}0 words.", lambda a, x: len(_words(a)) <= 10 * x["n"], "size"),
    "sentences": Rule("Write exactly {n} sentences.", lambda a, x: _n_sentences(a) == x["n"], "size"),
    "quoted": Rule("Put all of it in double quotes.", lambda a, _: bool(re.fullmatch(r'"[^"]+"', a.strip())), "frame"),
    "brackets": Rule(
        "Put all of it in square brackets.", lambda a, _: bool(re.fullmatch(r"\[[^\[\]]+\]", a.strip())), "frame"
    ),
    "bullets": Rule(
        "Write exactly {n} lines, each with a hyphen before it.",
        lambda a, x: len(_lines(a)) == x["n"] and all(line.startswith("-") for line in _lines(a)),
        "frame",
    ),
    "number": Rule("Mention the number {n}7.", lambda a, x: f"{x['n']}7" in re.findall(r"\d+", a), "digits"),
    "no_digits": Rule("Use no digits.", lambda a, _: not re.search(r"\d", a), "digits"),
    "question": Rule("Let the last sentence be a question.", lambda a, _: a.strip().endswith("?"), "end"),
    "exclaim": Rule("Use an exclamation mark.", lambda a, _: "!" in a, "mark"),
    "title": Rule(
        "Begin with a title in double angle brackets.", lambda a, _: bool(re.match(r"\s*<<[^<>]+>>", a)), "beginning"
    ),
    "no_letter": Rule("Do not use the letter {letter}.", lambda a, x: x["letter"] not in a.lower(), "letter"),
}


@dataclass(frozen=True)
class InstructionAtDistance(Task):
    """Follow instructions that were given many tokens earlier.

    n_instructions: instructions in a prompt.
    rule:           always this one instruction, one of RULES; empty: random ones.
    distance:       tokens from the instructions to the answer; 0: the instructions begin the context.
    haystack:       prose: generated sentences; text: a stretch of the texts.
    control:        floor: the instructions are missing; ceiling: no text stands after them.
    """

    source = "2311.07911"
    version = 1
    one_line = "follow instructions that were given many tokens earlier"
    family = "fewshot"
    metric = "strict"
    controls = ("floor", "ceiling")
    uses = "text"
    n_new = 96

    n_instructions: int = 1
    rule: str = ""
    distance: int = 0
    haystack: str = "prose"
    control: str = ""

    limits = {"n_instructions": (1, 4), "distance": (0, 1 << 30), "haystack": ("prose", "text")}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        names = self._drawn(rng)
        letters = ["aeiostr"[rng.integers(7)] for _ in names]
        banned = {letter for name, letter in zip(names, letters, strict=True) if name == "no_letter"}
        words = [word for word in WORDS if not banned & set(word)]
        drawn = [
            {"word": words[rng.integers(len(words))], "n": int(rng.integers(2, 5)), "letter": letter}
            for letter in letters
        ]
        texts = [RULES[name].text.format(**values) for name, values in zip(names, drawn, strict=True)]
        topic = TOPICS[rng.integers(len(TOPICS))]
        plural = "s" if len(names) > 1 else ""
        line_break = "\n" if self.distance else ""
        begin = vocabulary.encode(f"{line_break}Instruction{plural}: {' '.join(texts)}\n")
        ask = f"Follow the instruction{plural} above. Write a few sentences about {topic}."
        # A base model needs a cue that the answer begins.
        ask += "" if vocabulary.chat else "\nAnswer:"
        query = [*vocabulary.encode("\n"), *vocabulary.encode(ask), *vocabulary.end]
        meta = {"rules": list(names), "drawn": drawn, "distance": 0}
        nearest = len(begin) + len(query)
        if 0 < self.distance < nearest:
            raise TaskError(f"instructions and question take {nearest} tokens themselves", f"distance={nearest}")
        room = self.room(vocabulary, length, [Question(query, ())], joined, max(nearest, self.distance) - len(query))
        if self.control == "ceiling":
            return Prompt(np.array([*vocabulary.start, *begin], np.int64), (Question(query, (), meta),))
        given = [] if self.control == "floor" else begin
        n_before = room + len(query) - self.distance if self.distance else 0
        n_after = room - n_before - len(given)
        before, after = (vocabulary.haystack(self.haystack, n, rng).ids if n else [] for n in (n_before, n_after))
        context = np.concatenate([vocabulary.start, before, given, after]).astype(np.int64)
        meta |= {"distance": len(given) + n_after + len(query), "depth": n_before / room}
        return Prompt(context, (Question(query, (), meta),))

    def _drawn(self, rng: np.random.Generator) -> list[str]:
        if self.rule:
            if self.rule not in RULES:
                raise TaskError(f"no instruction is called `{self.rule}`", f"one of {', '.join(RULES)}")
            return [self.rule]
        chosen: list[str] = []
        for name in rng.permutation(list(RULES)).tolist():
            if RULES[name].about not in {RULES[other].about for other in chosen} and not _clash(name, chosen):
                chosen.append(name)
            if len(chosen) == self.n_instructions:
                break
        return chosen

    def grade(self, answer: str, meta: Mapping[str, Any]) -> Grade:
        """Whether the answer follows all instructions, strictly and loosely, and the share that it follows."""
        kept = [follows(answer, name, values) for name, values in zip(meta["rules"], meta["drawn"], strict=True)]
        loose = [
            any(follows(version, name, values) for version in _versions(answer))
            for name, values in zip(meta["rules"], meta["drawn"], strict=True)
        ]
        return {"strict": float(all(kept)), "loose": float(all(loose)), "followed": sum(kept) / len(kept)}


# A frame (quotes, brackets, hyphens) must come first and last, so nothing else can be asked to come first or last.
_TIGHT = {"quoted", "brackets", "bullets"}
_ENDS = {"begin", "end", "question", "title", "sentences"}


def _clash(name: str, others: list[str]) -> bool:
    both = {name, *others}
    return bool(both & _TIGHT and both & _ENDS)


def follows(answer: str, rule: str, drawn: Mapping[str, Any]) -> bool:
    """Whether an answer follows an instruction.

    An answer of fewer than three words does not, nor does an answer that repeats the instruction.
    """
    instruction = RULES[rule].text.format(**drawn).rstrip(".").lower()
    return len(_words(answer)) >= 3 and instruction not in answer.lower() and bool(RULES[rule].check(answer, drawn))


def _versions(answer: str) -> list[str]:
    """Versions of the answer: whole; without first line, last line, or both; each also without asterisks."""
    lines = answer.strip().splitlines()
    cuts = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = [answer, *("\n".join(cut).strip() for cut in cuts)]
    return [version for text in texts for version in (text, text.replace("*", ""))]
