"""Perplexity protocols: which tokens are read, which of them are scored, and how the scores are averaged.

A protocol turns lengths into *cells* (the columns of a table); a cell turns a document into *windows*. That is all
that the protocols differ in: `merge` finds the fewest forwards that serve every window, the token store keeps what
they gave, and a cell of any protocol can be filled from it as long as its windows are covered.

A document is its tokens x_1..x_T, indexed from 0 here: x_t is `tokens[t - 1]`. B is the prefix token (BOS, else EOS).

                    window of `prefix` at L = 6            `sliding` at L = 6, S = 2
    tokens read     B x1 x2 x3 x4 x5                       B x1 x2 x3 x4 x5 · B x3 x4 x5 x6 x7
    tokens scored     x1 x2 x3 x4 x5                         x1 x2 x3 x4 x5             x6 x7

Sources: YaRN, arXiv 2309.00071 (prefix; sliding with window weights) · ALiBi, arXiv 2108.12409 (sliding with S = 1,
windows) · EleutherAI lm-evaluation-harness, `loglikelihood_rolling` (rolling) · DAPE, arXiv 2405.14722 (last-k).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from hope_eval.errors import LengthError, OptionError, did_you_mean
from hope_eval.lengths import short_length

Weighting = Literal["document", "token", "window"]


@dataclass(frozen=True, order=True)
class Window:
    """One read of a document: [B,] tokens[start:stop], of which tokens[scored_start:scored_stop] are scored.

    scored_stop is at most stop + 1: the prediction of a token does not need the token to be read.
    """

    start: int
    stop: int
    scored_start: int
    scored_stop: int
    prefixed: bool

    def __post_init__(self) -> None:
        first = self.start + (not self.prefixed)
        assert self.start >= 0, self
        assert first <= self.scored_start < self.scored_stop <= self.stop + 1, self

    @property
    def n_read(self) -> int:
        """Tokens that the model reads, the prefix counted."""
        return self.stop - self.start + self.prefixed

    @property
    def n_scored(self) -> int:
        """Tokens that are scored."""
        return self.scored_stop - self.scored_start

    def covers(self, other: "Window", nested_safe: bool) -> bool:
        """Whether the scores of `other` are among this window's.

        nested_safe: the model's predictions do not depend on how much follows, so a longer read will do, or one that
                     ends with the last token that is scored.
        """
        return (
            (self.start, self.prefixed) == (other.start, other.prefixed)
            and (nested_safe or self.stop == other.stop)
            and self.scored_start <= other.scored_start
            and self.scored_stop >= other.scored_stop
        )


def merge(windows: Iterable[Window], nested_safe: bool) -> list[Window]:
    """Return the fewest windows whose scores cover all of `windows`, in order of position.

    For a nested-safe model this is what lets one forward at the longest length serve every length.
    """
    reads: dict[tuple[int, ...], Window] = {}
    for window in windows:
        if nested_safe:
            window = replace(window, stop=min(window.stop, window.scored_stop))
        key = (window.start, window.prefixed) if nested_safe else (window.start, window.prefixed, window.stop)
        seen = reads.setdefault(key, window)
        reads[key] = replace(
            seen,
            stop=max(seen.stop, window.stop),
            scored_start=min(seen.scored_start, window.scored_start),
            scored_stop=max(seen.scored_stop, window.scored_stop),
        )
    return sorted(reads.values())


@dataclass(frozen=True)
class Cell:
    """One column of a perplexity table.

    protocol:  the id that every number carries, `prefix:L=4096`.
    length:    tokens that the model reads for it.
    label:     the heading of its column, where that is not the length.
    windows:   from the number of tokens of a document to the windows that are read for this cell.
    weighting: mean over documents of document means, over tokens, or over window means.
    """

    protocol: str
    length: int
    windows: Callable[[int], list[Window]]
    weighting: Weighting
    label: str = ""


@dataclass(frozen=True)
class Protocol:
    """A perplexity protocol and its parameters.

    prefixed: whether a prefix token B is read first. Without one, the first token of a read is not scored.
    """

    name: ClassVar[str]
    one_line: ClassVar[str]

    prefixed: bool = True

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        """Return the columns for these lengths, ascending."""
        raise NotImplementedError

    def document_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens that a document must have for every cell to be filled."""
        return max(lengths) - self.prefixed

    def reads_whole(self, lengths: Sequence[int]) -> bool:
        """Whether documents are read to their end, and not only as far as `document_tokens`."""
        return False

    def parameters(self) -> dict[str, object]:
        """Return what the protocol is identified by, beside its name and the lengths."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _id(self, *parts: str) -> str:
        return f"{self.name}:" + ",".join(part for part in parts if part)

    def _check(self, lengths: Sequence[int], at_least: int, why: str) -> None:
        if min(lengths) < at_least:
            raise LengthError(
                f"`{self.name}` needs lengths of at least {at_least} tokens ({why}), got {min(lengths)}",
                "raise --lengths",
            )


@dataclass(frozen=True)
class Prefix(Protocol):
    """For each length: read B, x_1..x_{L-1} and score them; mean over documents of document means."""

    name = "prefix"
    one_line = "the first L tokens of each document, for each length"

    def cells(self, lengths: Sequence[int]) -> list[Cell]:  # noqa: D102
        return [Cell(self._id(f"L={length}"), length, self._windows(length), "document") for length in lengths]

    def _windows(self, length: int) -> Callable[[int], list[Window]]:
        stop = length - self.prefixed
        return lambda n_tokens: [Window(0, stop, not self.prefixed, stop, self.prefixed)]


@dataclass(frozen=True)
class Bucket(Protocol):
    """One read at the longest length; mean nll of the tokens x_t with 2^i <= t < 2^(i+1), for each i."""

    name = "bucket"
    one_line = "tokens at positions 2^i to 2^(i+1) - 1 of one read at the longest length"

    smallest: int = 32

    def cells(self, lengths: Sequence[int]) -> list[Cell]:  # noqa: D102
        stop = max(lengths) - self.prefixed
        self._check([max(lengths)], self.smallest + 2, f"the first bucket begins at position {self.smallest}")
        return list(self._buckets(stop, max(lengths)))

    def _buckets(self, stop: int, length: int) -> Iterator[Cell]:
        low = self.smallest
        while low <= stop:
            high = min(2 * low, stop + 1)
            window = Window(0, stop, low - 1, high - 1, self.prefixed)
            yield Cell(
                self._id(f"L={length}", f"t={low}-{high - 1}"),
                high,
                lambda n_tokens, window=window: [window],  # type: ignore[misc]
                "document",
                f"{short_length(low)}-{short_length(high)}",
            )
            low = high


@dataclass(frozen=True)
class LastK(Protocol):
    """For each length: read B, x_1..x_{L-1} and score the last k of them."""

    name = "last-k"
    one_line = "the last k tokens of the first L tokens of each document"

    k: int = 256

    def cells(self, lengths: Sequence[int]) -> list[Cell]:  # noqa: D102
        self._check(lengths, self.k + 1, f"k = {self.k} scored tokens and one before them")
        return [
            Cell(self._id(f"L={length}", f"k={self.k}"), length, self._windows(length), "document")
            for length in lengths
        ]

    def _windows(self, length: int) -> Callable[[int], list[Window]]:
        stop = length - self.prefixed
        return lambda n_tokens: [Window(0, stop, stop - self.k, stop, self.prefixed)]


@dataclass(frozen=True)
class Windows(Protocol):
    """Disjoint windows of L over the document, B first in each: every token scored once, the same at every length.

    Without B, a window begins with the last token of the window before, so that every token still has a prediction.

    tokens: how many tokens of each document are scored; 0 is all of them, None as many as `prefix` would score.
    """

    name = "windows"
    one_line = "disjoint windows of L tokens: the same tokens scored at every length"

    tokens: int | None = None

    def cells(self, lengths: Sequence[int]) -> list[Cell]:  # noqa: D102
        span = self._span(lengths)
        return [
            Cell(self._id(f"L={length}", f"T={span}" if span else ""), length, self._windows(length, span), "token")
            for length in lengths
        ]

    def _span(self, lengths: Sequence[int]) -> int:
        """Return how many tokens of each document are scored, 0 for all."""
        return max(lengths) - self.prefixed if self.tokens is None else self.tokens

    def document_tokens(self, lengths: Sequence[int]) -> int:  # noqa: D102
        return max(self._span(lengths), max(lengths) - self.prefixed)

    def reads_whole(self, lengths: Sequence[int]) -> bool:  # noqa: D102
        return not self._span(lengths)

    def _windows(self, length: int, span: int) -> Callable[[int], list[Window]]:
        return lambda n_tokens: list(_strided(span or n_tokens, length, length - 1, self.prefixed))


@dataclass(frozen=True)
class Sliding(Windows):
    """Windows of L that start at 0, S, 2S…, B first in each; only tokens that no earlier window scored are scored."""

    name = "sliding"
    one_line = "overlapping windows of L tokens that move by S; only new tokens are scored"

    stride: int = 256
    weighting: Literal["token", "window"] = "token"

    def cells(self, lengths: Sequence[int]) -> list[Cell]:  # noqa: D102
        if self.stride < 1:
            raise OptionError(f"the stride must be at least 1, got {self.stride}", "raise --stride")
        self._check(lengths, self.stride + 1, f"the stride of {self.stride} and one token of context")
        span = self._span(lengths)
        return [
            Cell(
                self._id(
                    f"L={length}",
                    f"S={self.stride}",
                    f"T={span}" if span else "",
                    "weighting=window" if self.weighting == "window" else "",
                ),
                length,
                self._windows(length, span),
                self.weighting,
            )
            for length in lengths
        ]

    def _windows(self, length: int, span: int) -> Callable[[int], list[Window]]:
        return lambda n_tokens: list(_strided(span or n_tokens, length, self.stride, self.prefixed))


@dataclass(frozen=True)
class Rolling(Windows):
    """lm-evaluation-harness `loglikelihood_rolling`.

    The first window reads B, x_1..x_{L-1} and scores x_1..x_L; later ones read L tokens, of which the first is the
    last of the window before, and score the L tokens that follow it; the last reads the final L tokens before the
    end and scores only what is left.
    """

    name = "rolling"
    one_line = "lm-evaluation-harness loglikelihood_rolling, with word and byte perplexity"

    def cells(self, lengths: Sequence[int]) -> list[Cell]:  # noqa: D102
        if not self.prefixed:
            raise OptionError("`rolling` is defined with a prefix token", "leave --prefix out")
        return super().cells(lengths)

    def _span(self, lengths: Sequence[int]) -> int:
        return self.tokens or 0

    def document_tokens(self, lengths: Sequence[int]) -> int:  # noqa: D102
        return max(1, self._span(lengths))

    def reads_whole(self, lengths: Sequence[int]) -> bool:  # noqa: D102
        # Word perplexity is there only where all of a document was read.
        return True

    def _windows(self, length: int, span: int) -> Callable[[int], list[Window]]:
        return lambda n_tokens: list(_rolling(span or n_tokens, length))


@dataclass(frozen=True)
class Paired(Protocol):
    """The same k tokens read with c = 64, 128, … tokens of context: what does more context do to the same tokens?"""

    name = "paired"
    one_line = "the same k tokens, read with 64, 128, … tokens of context"

    k: int = 256
    shortest: int = 64

    def cells(self, lengths: Sequence[int]) -> list[Cell]:  # noqa: D102
        longest = self._longest(lengths)
        self._check([max(lengths)], self.shortest + self.k + self.prefixed, "the shortest context, k and the prefix")
        contexts = [self.shortest]
        while contexts[-1] < longest:
            contexts.append(min(2 * contexts[-1], longest))
        return [
            Cell(
                self._id(f"c={context}", f"k={self.k}", f"at={longest}"),
                context + self.k + self.prefixed,
                self._windows(context, longest),
                "document",
                f"c={short_length(context)}",
            )
            for context in contexts
        ]

    def _longest(self, lengths: Sequence[int]) -> int:
        return max(lengths) - self.k - self.prefixed

    def _windows(self, context: int, longest: int) -> Callable[[int], list[Window]]:
        return lambda n_tokens: [Window(longest - context, longest + self.k, longest, longest + self.k, self.prefixed)]


PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol for protocol in (Prefix, Bucket, LastK, Windows, Sliding, Rolling, Paired)
}


def protocol_named(name: str, **parameters: object) -> Protocol:
    """Return the protocol of that name; parameters that are None keep their default.

    Raises OptionError for an unknown name, and for a parameter that this protocol does not have.
    """
    if name not in PROTOCOLS:
        raise OptionError(
            f"no protocol is called `{name}`",
            did_you_mean(name, PROTOCOLS, f"one of {', '.join(PROTOCOLS)}"),
        )
    given = {key: value for key, value in parameters.items() if value is not None}
    known = {field.name for field in fields(PROTOCOLS[name])}
    for key in given:
        if key not in known:
            raise OptionError(f"`{name}` has no parameter `{key}`", f"leave --{key} out, or choose another --protocol")
    return PROTOCOLS[name](**given)  # type: ignore[arg-type]


def _strided(n_tokens: int, length: int, stride: int, prefixed: bool) -> Iterator[Window]:
    """Yield windows that start at 0, stride, 2 * stride…, each scoring what no earlier one has scored."""
    done = int(not prefixed)
    start = 0
    while done < n_tokens:
        stop = min(start + length - prefixed, n_tokens)
        yield Window(start, stop, max(done, start + (not prefixed)), stop, prefixed)
        done = stop
        start += stride


def _rolling(n_tokens: int, length: int) -> Iterator[Window]:
    stop = min(length, n_tokens)
    yield Window(0, stop - 1, 0, stop, True)
    while stop < n_tokens:
        done, stop = stop, min(stop + length, n_tokens)
        yield Window(stop - 1 - length, stop - 1, done, stop, False)
