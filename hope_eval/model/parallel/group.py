"""Processes that hold one model, or read one sequence, together: they must do the same forwards in the same order.

Tensor parallel: transformers shards the weights by the plan of their architecture. Each process holds some heads and a
part of every feed-forward layer, and what they compute is summed up twice a layer. Logits are gathered, so that all
have all of them.

Context parallel: each process holds the whole model, and reads a part of the tokens. Keys and values are gathered in
every layer (`sequence.py`), and the scores in the end.

Each group of processes is a world of torch.distributed; groups exchange nothing. The processes of a group agree
on whatever could make them differ. They use the store by which they found each other, since others may be waiting in a
sum already:

    out of memory    all of them at the same sum of the same forward, and the batch is halved; else the run ends
    on loading       the same head, and the same scores and hidden states but for rounding
    free memory      the least of all
    what is written  after the first one's logits

Shape letters: B batch, L tokens, V vocabulary.
"""

import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore

from hope_eval.errors import CheckpointError, HopeEvalError, OptionError, StoreError
from hope_eval.model.configs import text_config
from hope_eval.model.parallel import sequence
from hope_eval.runs.launch import RESUME
from hope_eval.runs.processes import Ranks

# How long a process waits for the others of its group: some may take longer to read the weights.
PATIENCE = timedelta(minutes=30)

# The same, where all have done the same just before.
_SOON = timedelta(seconds=60)

# Seconds until the death of another process shows.
_NOTICED = 10.0

_BACKENDS = {"cuda": "nccl", "cpu": "gloo"}

_OPTIONS = {"model": "--tensor-parallel", "sequence": "--context-parallel"}

# Remedy if a model cannot be sharded.
INSTEAD = "--device-map auto spreads the layers over the GPUs of one process, without torchrun"


class Group:
    """The processes that hold one model, or read one sequence, seen by one of them.

    size:   number of processes.
    member: number of this process.
    shares: `model` or `text`.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.size = ranks.group_size
        self.member = ranks.member
        self.shares: Literal["model", "sequence"] = "sequence" if ranks.context_parallel > 1 else "model"
        self._option = _OPTIONS[self.shares]
        self._ranks = ranks
        self._store = PrefixStore(f"agreed-{ranks.session}-{ranks.group}", ranks.store)
        self._n_asked = 0

    def gathered(self, text: str, patience: timedelta = PATIENCE) -> list[str]:
        """The text of each process of the group. Raises StoreError if a process gives none in that time."""
        self._n_asked += 1
        keys = [f"{self._n_asked}-{member}" for member in range(self.size)]
        self._store.set(keys[self.member], text)
        try:
            self._store.wait(keys, patience)
        except RuntimeError as error:
            others = ", ".join(map(str, self._ranks.partners))
            raise StoreError(
                f"process {self._ranks.rank} waited {patience.total_seconds():,.0f} s for process {others}, which "
                f"{'share' if self.size > 2 else 'shares'} the same {self.shares}: they have fallen out of step",
                RESUME,
            ) from error
        return [self._store.get(key).decode() for key in keys]

    def all_out_of_memory(self, error: Exception) -> bool:
        """True if all of the group ran out of memory at the same place, and may continue with less.

        Raises StoreError if others did not: their sums no longer match.
        """
        try:
            places = self.gathered(_place(), _SOON)
        except StoreError:
            places = []
        if len(set(places)) == 1:
            return True
        raise StoreError(
            f"process {self._ranks.rank} of {self._ranks.world} ran out of memory, and the others that share the same "
            f"{self.shares} did not, or not at the same place: {str(error).splitlines()[0].split('. ')[0]}",
            f"shorter --lengths, or more than {self._option} {self.size}; see what else is on that GPU. {RESUME}",
        ) from error

    @contextlib.contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn an error that all of the group meet when they read into an error with a remedy."""
        try:
            yield
        except HopeEvalError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.gathered(reason, _SOON)
            raise CheckpointError(f"`{name}` cannot be read in {self.size} parts: {reason}", self.instead) from error

    @property
    def instead(self) -> str:
        """Remedy if a model cannot be shared in that way."""
        return INSTEAD if self.shares == "model" else sequence.INSTEAD

    def check_same(self, what: str, values: Sequence[Any]) -> None:
        """Raise CheckpointError unless all of the group have the same values."""
        texts = self.gathered(json.dumps([_place(), *values]), _SOON)
        if len(set(texts)) > 1:
            self._refuse(what, "; ".join(text[:200] for text in dict.fromkeys(texts)))

    def check_close(self, what: str, own_N: np.ndarray, dtype: torch.dtype) -> None:
        """Raise CheckpointError unless all of the group have the same numbers, up to rounding."""
        tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
        numbers = np.array([json.loads(text) for text in self.gathered(json.dumps(own_N.tolist()), _SOON)])
        gap = float(np.max(np.ptp(numbers, axis=0), initial=0.0))
        if gap > tolerance * max(1.0, float(np.max(np.abs(numbers), initial=0.0))):
            self._refuse(what, f"they are up to {gap:.3g} apart")

    def _refuse(self, what: str, why: str) -> None:
        cause = "transformers' plan for this architecture is not right, or " if self.shares == "model" else ""
        raise CheckpointError(
            f"the {self.size} processes that share a {self.shares} do not agree on {what}: {why}",
            f"{cause}they do not read the same files: {self.instead}",
        )

    def cut(self, n_tokens: int) -> sequence.Cut:
        """The parts into which a sequence is cut."""
        return sequence.Cut(n_tokens, self.size, self.member)

    def summed(self, share: Tensor) -> Tensor:
        """Sum over the group."""
        dist.all_reduce(share)
        return share

    def least(self, number: float, device: torch.device) -> float:
        """Least of the group's numbers."""
        shared = torch.tensor(number, dtype=torch.float64, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MIN)
        return float(shared)

    def __call__(self, ids_BL: Tensor, logits_BV: Tensor) -> Tensor:
        """Logits of the first process: as a processor of logits, so that all write the same."""
        logits_BV = logits_BV.contiguous()
        dist.broadcast(logits_BV, 0)
        return logits_BV


def _place() -> str:
    """Number of sums and gathers that this process has begun."""
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    return str(sum(group._get_sequence_number_for_group() for group in groups))


@contextlib.contextmanager
def held_together(ranks: Ranks, device: str) -> Iterator[Group | None]:
    """Connect the processes of a group until nothing is left to measure; None if each process works alone.

    Raises OptionError for a device that cannot do it, StoreError if a process of the group dies, or is lost.
    """
    if ranks.group_size == 1:
        yield None
        return
    group = Group(ranks)
    kind = torch.device("cpu" if device == "auto" else device).type
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if kind not in _BACKENDS or here is None or here.type != kind:
        raise OptionError(
            f"{_OPTIONS[group.shares]} goes over NVIDIA GPUs, or CPUs where there are none, and not over `{device}`",
            "leave --device out; CUDA_VISIBLE_DEVICES= hides the GPUs",
        )
    ranks.watch_partners()
    try:
        dist.init_process_group(
            _BACKENDS[kind],
            store=PrefixStore(f"group-{ranks.session}-{ranks.group}", ranks.store),
            rank=ranks.member,
            world_size=ranks.group_size,
            timeout=PATIENCE,
            device_id=torch.device(device) if kind == "cuda" else None,
        )
        ranks.while_measuring.callback(dist.destroy_process_group)
        yield group
    except BaseException as error:
        # Sums that others never reach must not keep this process from ending.
        atexit.register(_end)
        if isinstance(error, HopeEvalError) or not isinstance(error, RuntimeError):
            raise
        start = time.monotonic()
        while not (lost := ranks.lost_partner()) and time.monotonic() - start < _NOTICED:
            time.sleep(0.2)
        if not lost and not any(word in str(error).lower() for word in ("timed out", "timeout", "nccl", "gloo")):
            raise
        reason = lost or f"the processes that share a {group.shares} have lost contact: {str(error).splitlines()[0]}"
        raise StoreError(reason, RESUME) from error


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def check_shardable(name: str, module: nn.Module, n: int) -> None:
    """Raise OptionError if transformers cannot shard a model over n processes; an outline of it is enough."""
    config: Any = text_config(module)
    kind = getattr(config, "model_type", type(module).__name__)
    if kind == "hope_eval":
        raise OptionError(
            f"`{name}` is of this project's own decoder, whose encodings are made for all heads at once: it cannot be "
            "sharded",
            "leave --tensor-parallel out: one GPU holds it, and torchrun shares samples out",
        )
    if not getattr(module, "supports_tp_plan", False):
        raise OptionError(f"transformers has no plan to shard `{kind}`, which `{name}` is", INSTEAD)
    sizes = {key: getattr(config, key, None) for key in ("num_attention_heads", "num_key_value_heads")}
    n_heads = {key: size for key, size in sizes.items() if isinstance(size, int)}
    if any(size % n for size in n_heads.values()):
        fits = [str(d) for d in range(1, max(n_heads.values()) + 1) if not any(size % d for size in n_heads.values())]
        heads = " and ".join(f"{size} {key.removeprefix('num_').replace('_', ' ')}" for key, size in n_heads.items())
        raise OptionError(
            f"`{name}` has {heads}, which {n} processes cannot share evenly",
            f"--tensor-parallel {' or '.join(fits)}; or {INSTEAD}",
        )


def sharded(n: int) -> dict[str, Any]:
    """Options of `from_pretrained` that shard a model over n processes. Raises OptionError if it has none."""
    try:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=n)}
    except (ImportError, TypeError) as error:
        raise OptionError(
            "this version of transformers cannot shard a model", "pip install --upgrade transformers"
        ) from error
