"""What tests share: tiny checkpoints made from configs, and models whose scores are known beforehand."""

import os

# Nothing here may reach for a network, whatever the machine allows.
os.environ["HF_HUB_OFFLINE"] = "1"

import json
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from hope_eval import zoo
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Vocabulary

torch.set_num_threads(1)

VOCAB_SIZE = 257

ROOT = Path(__file__).parent.parent

_TEXT = "The {0} of chapter {0} went to the sea, saw {0} ships … and ate 1{0} figs.\n"


def tiny_config(kind: str = "llama", **changes):
    """Return the config of a decoder of two layers that scores the bytes of `byte_tokenizer`."""
    options = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 16,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.3, **changes,
    }  # fmt: skip
    return transformers.CONFIG_MAPPING[kind](**options)


def tiny_module(kind: str = "llama", seed: int = 0, **changes):
    """Return a model of that kind with random weights, large enough for its predictions to differ by position."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).eval()


def tiny_model(kind: str = "llama", **changes) -> LanguageModel:
    """Return a tiny language model with a byte tokenizer."""
    module = tiny_module(kind, **changes)
    return LanguageModel(f"tiny-{kind}", module, byte_tokenizer(), module.config.max_position_embeddings, "config")


def byte_tokenizer():
    """Return a tokenizer with one token a byte, and `<s>` before them as 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {symbol: number for number, symbol in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def committed(folder: str) -> list[Path]:
    """Return the files of the project below a folder; not what commands, caches or editors have left there."""
    if not (ROOT / ".git").exists():
        # An archive of the project: nobody has worked in it.
        return sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", folder]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).exists()]


class Uniform(torch.nn.Module):
    """Gives every token of the vocabulary the same probability."""

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.calls: list[tuple[int, int]] = []

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(ids_BL.shape))
        return torch.zeros(*ids_BL.shape, self.vocab_size)


def story(n_sentences: int, start: int = 0) -> str:
    """Return a text with characters of one and of three bytes."""
    return "".join(_TEXT.format(start + number) for number in range(n_sentences))


@pytest.fixture(scope="session")
def forked():
    """What does as torchrun, without importing everything again in every process, and returns their exit codes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).parent / "together.py"), "serve"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)

    def processes_do(what: str, root: Path, *checkpoints: Path, n: int = 2, **environment) -> list[int]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(n)}
        order = {"n": n, "what": what, "root": str(root), "checkpoints": list(map(str, checkpoints))}
        server.stdin.write(json.dumps({**order, "environment": environment}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield processes_do
    server.stdin.close()
    server.stdout.close()
    server.wait()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """The folder of a tiny Llama in transformers format."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    tiny_module().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stories(tmp_path_factory) -> Path:
    """A corpus of three documents of about 3,000 bytes and one of 70."""
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    texts = [story(40, 100 * number) for number in range(3)] + [story(1)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """The words of the zoo, with three files of Python as texts."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("zoo:hope"), local_files_only=True)
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [(folder / name).read_text("utf-8") for name in ("argparse.py", "typing.py", "inspect.py")]
    return Vocabulary(tokenizer, tokenizer.bos_token_id, texts=texts)


@pytest.fixture(autouse=True)
def _files_of_users_are_forgotten():
    """Let each test begin like a new process: two files of one name are refused in one process."""
    yield
    for name in [name for name in sys.modules if name.startswith("hope_eval_") and "hope_eval_tasks." not in name]:
        del sys.modules[name]
