"""Recipe: all settings that decide a trained model, and the folder of its training.

    OUT/recipe.json   the recipe, written first: the folder then belongs to this training

Two trainings with recipes that differ only in `encoding` start from the same weights and read the same rows in the same
order.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from hope_eval.encodings import Geometry
from hope_eval.errors import OptionError, TrainingError, did_you_mean
from hope_eval.files import whole_file
from hope_eval.model.layer_choice import parse_choice

# In the folder of a training, while a command works there.
_LOCK = ".train.lock"

# Installed packages to train on. Three texts are held out for evaluation, never listed here: the standard library
# (the default of `--data`), sympy and networkx.
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

# The value of `tokenizer` for a new one, trained on the texts.
NEW = "new"

# Shares of the rows, by task; the rest is text. Copying and recall are learned slowly, the others quickly.
MIX: Mapping[str, float] = {
    "copy": 0.09,
    "associative_recall": 0.09,
    "passkey": 0.024,
    "needle": 0.036,
    "needle_multi_key": 0.012,
    "needle_multi_value": 0.008,
    "needle_multi_query": 0.008,
    "key_value": 0.024,
    "variable_tracking": 0.024,
    "recency_decoy": 0.024,
    "label_map": 0.03,
    "rule_induction": 0.03,
}


def parse_mix(text: str) -> dict[str, float]:
    """Read `copy=0.2,passkey=0.05`: shares of the rows, by task; `text`: no tasks; `default`: MIX.

    Raises OptionError for what is no share, and for shares that are more than all.
    """
    if text in ("text", "default"):
        return dict(MIX) if text == "default" else {}
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not name.strip() or not 0 < value <= 1 or name.strip() in mix:
            raise OptionError(
                f"`{part}` in `--mix {text}` is not a task and its share of the rows",
                "--mix copy=0.2,passkey=0.05, --mix text, or --mix default",
            )
        mix[name.strip()] = value
    if sum(mix.values()) > 1 + 1e-9:
        raise OptionError(f"the shares of `--mix {text}` are {sum(mix.values()):g} together", "lower them: 1 at most")
    return mix


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


# Named by the number of parameters with a vocabulary of 4,096 tokens; 125m and 3b are the shapes of the HoPE paper.
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
    """All settings that decide a trained model.

    encoding:      its name and parameters, as on the command line; or layers and their encodings.
    size:          a name of SIZES, or width x layers x heads.
    train_length:  tokens of a row.
    tokens:        to train on in all; rounded down to whole batches, of which there is one at least.
    seed:          of the initial weights and the rows.
    texts:         corpora, as for `--data` of `hope-eval ppl`.
    tokenizer:     a checkpoint folder to take it from, or `new`.
    mix:           tasks and their shares of the rows; the rest is text.
    batch_tokens:  of one step of the optimiser, over all GPUs.
    learning_rate: the highest of the schedule; 0: by size.
    """

    encoding: str
    size: str = "3m"
    train_length: int = 256
    tokens: int = 100_000_000
    seed: int = 0
    texts: tuple[str, ...] = (TEXTS,)
    tokenizer: str = NEW
    mix: tuple[tuple[str, float], ...] = tuple(MIX.items())
    batch_tokens: int = 32_768
    learning_rate: float = 0.0

    @property
    def batch_rows(self) -> int:
        """Rows of one step."""
        return max(1, self.batch_tokens // self.train_length)

    @property
    def n_steps(self) -> int:
        """Steps of the optimiser."""
        return max(1, self.tokens // (self.batch_rows * self.train_length))

    @property
    def n_tokens(self) -> int:
        """Tokens of all steps: `tokens`, in whole batches."""
        return self.n_steps * self.batch_rows * self.train_length

    def check(self) -> None:
        """Raise OptionError or EncodingError for a wrong setting, before any work is done."""
        size = parse_size(self.size)
        geometry = Geometry(size.d_model // size.n_heads, size.n_heads, self.train_length, d_model=size.d_model)
        choice = parse_choice(self.encoding)
        choice.of_layers(["full"] * size.n_layers)
        for spec in choice.specs:
            spec.build(geometry)


def claim(recipe: Recipe, out: Path, force: bool) -> bool:
    """Make `out` the folder of this recipe; True if the model in it is trained already.

    force: delete another training in the folder.

    Raises TrainingError if the folder holds anything else.
    """
    path, wanted = out / "recipe.json", json.dumps(asdict(recipe), indent=1)
    try:
        if force and path.is_file():
            _empty(out)
        if path.is_file():
            _check_same(path, wanted)
        elif out.is_dir() and any(not _is_ours(child.name) for child in out.iterdir()):
            raise TrainingError(f"`{out}` is not empty, and holds no training", "choose another --out")
        else:
            out.mkdir(parents=True, exist_ok=True)
            # Several processes may write it at once.
            with whole_file(path, path.with_suffix(f".part{os.getpid()}")) as part:
                part.write_text(wanted)
    except OSError as error:
        raise TrainingError(f"cannot write to `{out}`: {error}", "choose another --out") from error
    return (out / "training.json").is_file()


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Lock the folder of one or more trainings; this process may lock it again.

    Of processes that train one model together, the first holds the lock.

    Raises TrainingError if another command trains there, or if the folder or anything in it is a link.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        links = [place for place in (out, *out.iterdir()) if place.is_symlink()]
        if links:
            raise TrainingError(
                f"`{links[0]}` is a link, and links are not followed to write or delete a training",
                "remove the link, or choose another --out",
            )
        lock = filelock.FileLock(out / _LOCK, is_singleton=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise TrainingError(
            f"another command is training into `{out}`", "wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise TrainingError(f"cannot write to `{out}`: {error}", "choose another --out") from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            (out / _LOCK).unlink(missing_ok=True)
        lock.release()


def _is_ours(name: str) -> bool:
    """Whether a training writes a file of that name before it claims its folder."""
    return name in (".work", _LOCK) or ".part" in name


def _empty(out: Path) -> None:
    """Delete everything in a folder but its lock; links are removed and not followed."""
    if out.is_symlink():
        raise TrainingError(f"`{out}` is a link, and links are not followed to delete", "give the folder itself")
    for child in out.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != _LOCK:
            child.unlink()


def _check_same(path: Path, wanted: str) -> None:
    written = path.read_text("utf-8", errors="replace")
    if written == wanted:
        return
    try:
        theirs = dict(json.loads(written))
    except (TypeError, ValueError):
        raise TrainingError(f"`{path}` is damaged", "choose another --out, or --force") from None
    ours = json.loads(wanted)
    fields = ", ".join(key for key in ours if theirs.get(key) != ours[key])
    raise TrainingError(
        f"`{path.parent}` holds a training with a different recipe: {fields}", "choose another --out, or --force"
    )
