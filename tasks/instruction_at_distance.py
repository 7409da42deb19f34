"""Instructions at a distance: one or more instructions, then text about other things, then a topic to write about.

    <s> Instruction: Use no commas. End with the word marble.
    The boats come home at noon. The hills are far away. …
    Follow the instruction above. Write a few sentences about a storm at sea.        the model writes; code checks

The answer is free, and code can check every instruction. `strict`: the answer follows all instructions. `loose`: the
answer does, or what is left of it without its first line, its last line, or asterisks. `followed`: the share of the
instructions that it follows.

An answer counts only if it is about its topic and not degenerate: it has eight words or more, half of them different or
more, and one of the topic or its family that no instruction names. Any other follows nothing.

Some instructions are followed by chance. The control `floor` leaves them out, is asked on every context, and is always
printed. The headline is `above_floor`: `strict` with the instructions minus `strict` without them, by context. It
is 0 for answers that do not depend on the instructions.

Source: Zhou et al., 2023, "IFEval", arXiv 2311.07911 (the grading); instructions and wording are ours.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hope_eval.task import Grade, Prompt, Question, Task, TaskError, Vocabulary

WORDS = """
anchor autumn bridge candle castle copper engine feather forest garden harbour island lantern marble meadow
mirror ocean orange paper river silver stone thunder violin winter
""".split()  # noqa: SIM905
# Words that tell that an answer is about a topic.
TOPICS = {
    topic: frozenset(family.split())
    for topic, family in {
        "a storm at sea": "storm sea wave ship boat sail wind gale rain lightning water sailor captain crew deck mast "
        "cloud foam tide",
        "a walk in the city": "walk city street building shop crowd car traffic park town square bus avenue pavement "
        "sidewalk cafe stroll skyline",
        "an old house": "house room roof wall door window attic floor stair kitchen dust brick chimney porch cellar "
        "hall furniture",
        "a day at school": "school teacher class classroom lesson book student pupil desk exam homework learn study "
        "playground math lunch",
        "a long journey": "journey road travel trip path mile map destination luggage bag route voyage traveller "
        "border hotel",
        "the work of a baker": "baker bread oven dough flour bake bakery roll loaf loaves cake pastry yeast knead "
        "crust bun",
        "a lost dog": "dog puppy bark leash owner tail collar paw pet search fur shelter missing lost found",
        "the first snow": "snow white cold flake snowflake ice icy frost freeze froze snowman sled chill",
        "a garden in spring": "spring flower tree bloom blossom bird seed plant grass rose tulip soil bee green bud "
        "leaf leaves",
        "a train at night": "train night rail station track dark moon passenger carriage whistle conductor wheel "
        "sleep platform",
        "a visit to the market": "market fruit vegetable stall buy bought sell sold price seller vendor apple fish "
        "cheese basket shop",
        "the view from a tower": "view tower city roof sky hill height horizon stair below street top building high",
    }.items()
}


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


# What may stand between the end of a sentence and the next one.
_CLOSING = "\"'\u201c\u201d\u2019\u00bb)\\]>*_"
_END = re.compile(rf"(?P<mark>[.!?\u2026\u3002\uff01\uff1f]+)(?P<closing>[{_CLOSING}]*)(?=\s|$)")

# Before a name or a number, and in the middle of a sentence.
_TITLES = {
    "mr",
    "mrs",
    "ms",
    "dr",
    "prof",
    "st",
    "mt",
    "capt",
    "lt",
    "gen",
    "col",
    "sgt",
    "rev",
    "hon",
    "vs",
    "e.g",
    "i.e",
}
# In the middle of a sentence, unless a capital letter follows.
_SHORT = {"etc", "a.m", "p.m", "u.s", "u.k", "jr", "sr", "inc", "ltd", "co", "approx"}


def _ends_sentence(answer: str, end: re.Match[str]) -> bool:
    """Whether a mark ends a sentence: not in `Mr. Smith`, `J. Smith`, or `"Stop." he said`."""
    after = answer[end.end() :].lstrip()
    if not _words(after):
        return True
    begins = after.lstrip("\"'\u201c\u201e\u00ab([<*_- ")
    if end["closing"].strip("*_)>") and begins[:1].islower():
        return False
    if end["mark"] in ("...", "\u2026"):
        return not (begins[:1].islower() or answer[: end.start()].endswith((" ", "\n")))
    if end["mark"] != ".":
        return True
    before = re.search(r"(?:[^\W\d_]\.)*[^\W_]+$", answer[: end.start()])
    word = before[0] if before else ""
    if word.lower() in _TITLES or (word.lower() in ("no", "fig") and begins[:1].isdigit()):
        return False
    if len(word) == 1 and word.isupper() and word != "I":
        return False
    return word.lower() not in _SHORT or begins[:1].isupper()


def _n_sentences(answer: str) -> int:
    """Sentences of a text; words after the last mark are one more."""
    ends = [end.end() for end in _END.finditer(answer) if _ends_sentence(answer, end)]
    edges = [0, *ends, len(answer)]
    return sum(bool(_words(answer[start:stop])) for start, stop in pairwise(edges))


def _has_comma(answer: str) -> bool:
    """Whether there is a comma of any script: `,`, a fullwidth, an ideographic, an Arabic one."""
    return any(
        unicodedata.category(mark) == "Po" and "COMMA" in unicodedata.name(mark, "").split() for mark in set(answer)
    )


# After a word, or alone: not in `a != b`, `!done` and `![picture]`.
_EXCLAMATION = re.compile(rf"(?:[^\W_][{_CLOSING}?.\u2026]*|(?<=\s))[!\uff01\u203c\u2049](?!\s*=)(?![\w\[(])")
_QUESTION = re.compile(rf"[?\uff1f\u2049][!?\uff01\uff1f]*[{_CLOSING}\s]*$")
_QUOTES = '"\uff02\u201c\u201d\u201e\u00ab\u00bb'
_QUOTED = re.compile(
    rf"(?:\"[^{_QUOTES}]+\"|\uff02[^{_QUOTES}]+\uff02|[\u201c\u201d\u201e][^{_QUOTES}]+[\u201c\u201d]"
    rf"|\u00ab[^{_QUOTES}]+\u00bb|\u00bb[^{_QUOTES}]+\u00ab)"
)
_BRACKETED = re.compile(r"\[[^\[\]]+\]|\uff3b[^\uff3b\uff3d]+\uff3d")
_TITLE = re.compile(r"\s*(?:<<([^<>]+)>>|\u300a([^\u300a\u300b]+)\u300b|\u27ea([^\u27ea\u27eb]+)\u27eb)(.*)", re.DOTALL)


def _has_title(answer: str) -> bool:
    """Whether the answer begins with a title of one word or more, and goes on after it."""
    found = _TITLE.match(answer)
    return bool(found and _words("".join(filter(None, found.groups()[:3]))) and _words(found[4]))


def _has_letter(answer: str, letter: str) -> bool:
    """Whether there is a letter, with or without accents."""
    return letter in unicodedata.normalize("NFKD", answer).lower()


RULES = {
    "upper": Rule("Write in upper-case letters only.", lambda a, _: a.upper() == a and a.lower() != a, "case"),
    "lower": Rule("Write in lower-case letters only.", lambda a, _: a.lower() == a and a.upper() != a, "case"),
    "no_comma": Rule("Use no commas.", lambda a, _: not _has_comma(a), "comma"),
    "begin": Rule("Begin with the word {word}.", lambda a, x: _words(a)[0].lower() == x["word"], "beginning"),
    "end": Rule("End with the word {word}.", lambda a, x: _words(a)[-1].lower() == x["word"], "end"),
    "use": Rule("Use the word {word}.", lambda a, x: _has(a, x["word"]) > 0, "word"),
    "use_times": Rule("Use the word {word} exactly {n} times.", lambda a, x: _has(a, x["word"]) == x["n"], "word"),
    "avoid": Rule("Do not use the word the.", lambda a, _: _has(a, "the") == 0, "the"),
    "at_least": Rule("Write at least {n}0 words.", lambda a, x: len(_words(a)) >= 10 * x["n"], "size"),
    "at_most": Rule("Write at most {n}0 words.", lambda a, x: len(_words(a)) <= 10 * x["n"], "size"),
    "sentences": Rule("Write exactly {n} sentences.", lambda a, x: _n_sentences(a) == x["n"], "size"),
    "quoted": Rule("Put all of it in double quotes.", lambda a, _: bool(_QUOTED.fullmatch(a.strip())), "frame"),
    "brackets": Rule("Put all of it in square brackets.", lambda a, _: bool(_BRACKETED.fullmatch(a.strip())), "frame"),
    "bullets": Rule(
        "Write exactly {n} lines, each with a hyphen before it.",
        lambda a, x: len(_lines(a)) == x["n"] and all(line.startswith("-") and _words(line) for line in _lines(a)),
        "frame",
    ),
    "number": Rule(
        "Mention the number {n}7.",
        lambda a, x: bool(re.search(rf"(?<!\d)(?<!\d[.,]){x['n']}7(?![.,]?\d)", a)),
        "digits",
    ),
    "no_digits": Rule("Use no digits.", lambda a, _: not any(map(str.isdigit, a)), "digits"),
    "question": Rule("Let the last sentence be a question.", lambda a, _: bool(_QUESTION.search(a)), "end"),
    "exclaim": Rule("Use an exclamation mark.", lambda a, _: bool(_EXCLAMATION.search(a)), "mark"),
    "title": Rule("Begin with a title in double angle brackets.", lambda a, _: _has_title(a), "beginning"),
    "no_letter": Rule("Do not use the letter {letter}.", lambda a, x: not _has_letter(a, x["letter"]), "letter"),
}


@dataclass(frozen=True)
class InstructionAtDistance(Task):
    """Follow instructions that were given many tokens earlier.

    n_instructions: instructions in a prompt.
    rule:           always this one instruction, one of RULES; empty: random ones.
    distance:       tokens from the instructions to the answer; 0: the instructions begin the context.
    haystack:       prose: generated sentences; text: a stretch of the texts.
    control:        floor: the instructions are missing, always asked too; ceiling: no text stands after them.
    """

    source = "2311.07911"
    version = 2
    one_line = "follow instructions that were given many tokens earlier"
    family = "fewshot"
    metric = "strict"
    controls = ("floor", "ceiling")
    above = "floor"
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
        topic = list(TOPICS)[rng.integers(len(TOPICS))]
        plural = "s" if len(names) > 1 else ""
        line_break = "\n" if self.distance else ""
        begin = vocabulary.encode(f"{line_break}Instruction{plural}: {' '.join(texts)}\n")
        ask = f"Follow the instruction{plural} above. {_REQUEST.format(topic=topic)}"
        # A base model needs a cue that the answer begins.
        ask += "" if vocabulary.chat else "\nAnswer:"
        query = [*vocabulary.encode("\n"), *vocabulary.encode(ask), *vocabulary.end]
        meta = {"rules": list(names), "drawn": drawn, "topic": topic, "distance": 0}
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
        given = list(zip(meta["rules"], meta["drawn"], strict=True))
        words = {drawn["word"] for name, drawn in given if "{word}" in RULES[name].text}
        versions = [version for version in _versions(answer) if counts(version, meta["topic"], words)]
        kept = [answer in versions and follows(answer, *rule) for rule in given]
        loose = [any(follows(version, *rule) for version in versions) for rule in given]
        return {"strict": float(all(kept)), "loose": float(all(loose)), "followed": sum(kept) / len(kept)}


_REQUEST = "Write a few sentences about {topic}."

# A frame (quotes, brackets, hyphens) must come first and last, so nothing else can be asked to come first or last.
_TIGHT = {"quoted", "brackets", "bullets"}
_ENDS = {"begin", "end", "question", "title", "sentences"}


def _clash(name: str, others: list[str]) -> bool:
    both = {name, *others}
    return bool(both & _TIGHT and both & _ENDS)


def counts(answer: str, topic: str, given: Collection[str] = ()) -> bool:
    """Whether an answer is about its topic and not degenerate.

    given: words that instructions name, which do not tell that the answer is about the topic.
    """
    # Saying the request again is no answer.
    said = answer.lower().replace(_REQUEST.format(topic=topic)[:-1].lower(), " ")
    words = [word for word in _words(said) if re.search(r"[^\W\d_]", word)]
    if len(words) < _FEWEST_WORDS or len(set(words)) < len(words) / 2:
        return False
    family = TOPICS[topic] - set(given)
    return any(family & _stems(part) for word in words for part in word.split("-"))


# Answers with fewer words are no sentences.
_FEWEST_WORDS = 8


def _stems(word: str) -> set[str]:
    """A word, and what it may come from: waves, raining, stormy, baking, stopped."""
    stems = {word} | {word.removesuffix(end) for end in ("'s", "\u2019s", "s", "es", "d", "ed", "ing", "y")}
    return stems | {f"{stem}e" for stem in stems} | {stem[:-1] for stem in stems if stem[-2:-1] == stem[-1:]}


def follows(answer: str, rule: str, drawn: Mapping[str, Any]) -> bool:
    """Whether an answer that counts follows an instruction; one that repeats the instruction does not."""
    instruction = RULES[rule].text.format(**drawn).rstrip(".").lower()
    return instruction not in answer.lower() and bool(RULES[rule].check(answer, drawn))


def _versions(answer: str) -> list[str]:
    """Versions of the answer: whole; without first line, last line, or both; each also without asterisks."""
    lines = answer.strip().splitlines()
    cuts = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = [answer, *("\n".join(cut).strip() for cut in cuts)]
    return [version for text in texts for version in (text, text.replace("*", ""))]
