"""The token-wise work of a decoder, over chunks of tokens: little of a long input is in memory at once.

    with ChunkedLayers(decoder).reading(n_tokens): decoder(ids)

An MLP makes tensors many times as wide as the model, and a norm copies its input in float32. Both are the same for
every token, whatever stands before it; so they are run over some thousand tokens at a time, and only their results
are whole. On a GPU, chunks of long inputs are compiled: element-wise work is fused, and since all chunks but the last
have one shape, no length compiles anew.

Shape letters: B batch, L length, N tokens of a chunk, D model width.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hope_eval.errors import OptionError
from hope_eval.model.kernels.attention import PLAIN

Compile = Literal["auto", "on", "off"]

# Tokens of a chunk, at most and at least.
LARGEST_CHUNK, SMALLEST_CHUNK = 4096, 256

# On a GPU, where every chunk has to be launched, narrow models get more: as wide as a model of 8B, chunks take as much.
_LARGEST_CHUNK_WIDTH = 14_336

# `auto` compiles for inputs of at least that many tokens: their forwards take seconds, and fusing saves a tenth.
COMPILED_FROM = 65_536


class ChunkedLayers:
    """The token-wise parts of a decoder: its norms, and all of its layers but attention.

    chunk:           tokens of a chunk; halved when memory runs out.
    compile_seconds: seconds of compiling.
    compile_refused: why `auto` does not compile: the machine has no compiler for it.
    n_run:           number of times that a part ran over chunks.
    """

    def __init__(self, decoder: nn.Module, compiling: Compile = "auto", n_layers: int | None = None) -> None:
        self.parts, self.attentions = _parts(decoder, n_layers)
        self.chunk = LARGEST_CHUNK
        self.compiling: Compile = compiling
        self.compile_seconds = 0.0
        self.compile_refused = ""
        self.n_run = 0
        self._compiled: dict[int, Callable[..., Any]] = {}
        self._warm: set[tuple[Any, ...]] = set()

    def halve(self, n_tokens: int) -> bool:
        """Make chunks smaller; True if that helps with that many tokens."""
        if n_tokens <= min(self.chunk, LARGEST_CHUNK) or self.chunk <= SMALLEST_CHUNK:
            return False
        self.chunk //= 2
        while self.chunk >= n_tokens:
            # So far the whole input fits into one chunk.
            self.chunk //= 2
        if self._compiled:
            # Another shape is another kernel, and the compiler limits the kernels of one function.
            self._compiled.clear()
            self._warm.clear()
            torch._dynamo.reset()
        return True

    @contextlib.contextmanager
    def reading(self, n_tokens: int, *, compiles: bool = True) -> Iterator[None]:
        """Let the parts run over chunks while the decoder reads that many tokens, all inputs together.

        compiles: whether the parts may be compiled.
        """
        if n_tokens <= self.chunk or torch.is_grad_enabled():
            yield
            return
        compiled = compiles and self._compiles(n_tokens)
        # A forward that another library has put around a part is not compiled.
        changed = [
            (part, partial(self._in_chunks, part, part.forward, compiled and isinstance(part.forward, MethodType)))
            for part in self.parts
        ]
        if compiled:
            compilable = (part for part in self.attentions if _may_be_compiled(part))
            changed += [(part, partial(self._whole, part, part.forward)) for part in compilable]
        forwards = [(part, part.__dict__.get("forward")) for part, _ in changed]
        for part, run in changed:
            part.forward = run
        try:
            yield
        finally:
            for part, forward in forwards:
                part.__dict__.pop("forward", None)
                if forward is not None:
                    part.forward = forward

    def _compiles(self, n_tokens: int) -> bool:
        if self.compiling == "auto":
            device = next((p.device.type for part in self.parts for p in part.parameters()), "cpu")
            return device == "cuda" and n_tokens >= COMPILED_FROM and not self.compile_refused
        return self.compiling == "on"

    def _in_chunks(
        self, part: nn.Module, forward: Callable[..., Any], compiled: bool, *inputs: Any, **options: Any
    ) -> Any:
        """Output of a part for hidden states [B, L, D], over chunks of tokens."""
        whole_BLD = inputs[0] if len(inputs) == 1 and not options else None
        if not isinstance(whole_BLD, Tensor) or whole_BLD.ndim != 3 or whole_BLD[..., 0].numel() <= self.chunk:
            return forward(*inputs, **options)
        self.n_run += 1
        flat_LD = whole_BLD.reshape(-1, whole_BLD.shape[-1])
        n, size = len(flat_LD), self.chunk
        # If a model is spread over devices, a part and its input may be on different ones.
        device = next((p.device for p in part.parameters()), flat_LD.device)
        out_LD = torch.empty_like(flat_LD, device=device)
        step = self._step(part, forward) if compiled else partial(_step, forward)
        for start in range(0, n, size):
            # Taken from two dimensions, it has the strides of its own size: otherwise every length would compile anew.
            chunk_1ND, out_1ND = flat_LD[start : start + size][None], out_LD[start : start + size][None]
            # The last chunk has a shape of its own, and is not worth compiling for.
            run = step if chunk_1ND.shape[1] == size else partial(_step, forward)
            if not run(chunk_1ND, out_1ND):
                return forward(*inputs)
        return out_LD.reshape(whole_BLD.shape)

    def _whole(self, part: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """Output of an attention layer; the code around its kernel is compiled, for any length."""
        if options.get("past_key_values") is not None:
            return forward(*inputs, **options)
        run = self._compiled.get(id(part))
        if run is None:
            run = self._compiled[id(part)] = torch.compile(forward, dynamic=True)
        return self._tried((type(part),), run, forward, *inputs, **options)

    def _step(self, part: nn.Module, forward: Callable[..., Any]) -> Callable[[Tensor, Tensor], bool]:
        """A compiled step of a part; the first step of its kind is compiled when it is called."""
        run = self._compiled.get(id(part))
        if run is None:
            run = self._compiled[id(part)] = torch.compile(partial(_step, forward), dynamic=False)
        return partial(self._tried, (type(part), self.chunk), run, partial(_step, forward))

    def _tried(
        self, kind: tuple[Any, ...], run: Callable[..., Any], plain: Callable[..., Any], *inputs: Any, **options: Any
    ) -> Any:
        """Output of a compiled call; the seconds of the first call of its kind count as compiling.

        Raises OptionError if compiling was asked for and cannot be done.
        """
        if kind in self._warm:
            return run(*inputs, **options)
        if self.compile_refused:
            return plain(*inputs, **options)
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                # The compiler's advice on settings of the user.
                warnings.simplefilter("ignore")
                out = run(*inputs, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # The compiler needs a C compiler, Triton, and a GPU that it knows; without them, nothing is compiled.
            reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
            if self.compiling == "on":
                raise OptionError(f"torch.compile cannot be used here: {reason}", "--compile off") from error
            self.compile_refused = reason
            return plain(*inputs, **options)
        self.compile_seconds += time.perf_counter() - start
        self._warm.add(kind)
        return out


def _step(forward: Callable[[Tensor], Any], chunk_1ND: Tensor, out_1ND: Tensor) -> bool:
    """Write the output of a part for a chunk; True if it has the shape of the chunk, as token-wise work must."""
    output = forward(chunk_1ND)
    if not isinstance(output, Tensor) or output.shape != out_1ND.shape or output.dtype != out_1ND.dtype:
        return False
    out_1ND.copy_(output)
    return True


def largest_chunk(device_type: str, width: int, compiling: Compile = "auto") -> int:
    """Most tokens that a chunk has.

    width: of the widest tensors within a part.
    """
    if device_type != "cuda" or compiling == "on":
        # Only chunks are compiled.
        return LARGEST_CHUNK
    return min(LARGEST_CHUNK * _power_of_two(_LARGEST_CHUNK_WIDTH / width), COMPILED_FROM // 2)


def chunk_for(free: float, width: int, number_bytes: int, device_type: str, compiling: Compile = "auto") -> int:
    """Tokens of a chunk if `free` bytes are free: a power of two.

    width: of the widest tensors within a part; three are in memory at once.
    """
    room = min(free / 8 / (3 * width * number_bytes), largest_chunk(device_type, width, compiling))
    return max(SMALLEST_CHUNK, _power_of_two(room))


def _power_of_two(number: float) -> int:
    """Largest power of two that is not above the number; at least 1."""
    return int(2 ** math.floor(math.log2(max(1, number))))


def _parts(decoder: nn.Module, n_layers: int | None) -> tuple[list[nn.Module], list[nn.Module]]:
    """Modules of a decoder that work token by token, with the norms beside the layers, and its attention layers.

    n_layers: number of its layers, since a model may also have towers for images and sounds; None: unknown.
    """
    lists = [child for child in decoder.modules() if isinstance(child, nn.ModuleList) and len(child)]
    layers = next((modules for modules in lists if len(modules) == n_layers), next(iter(lists), ()))
    token_wise: dict[int, nn.Module] = {}
    attentions: dict[int, nn.Module] = {}
    for layer in layers:
        for name, child in layer.named_children():
            attends = "attn" in name or "attention" in type(child).__name__.lower()
            (attentions if attends else token_wise)[id(child)] = child
    if layers:
        norms = (child for child in decoder.children() if "norm" in type(child).__name__.lower())
        token_wise |= {id(child): child for child in norms}
    # Weights that are kept elsewhere would be fetched for each chunk anew.
    here = [part for part in token_wise.values() if not any(p.device.type == "meta" for p in part.parameters())]
    return here, list(attentions.values())


def _may_be_compiled(part: nn.Module) -> bool:
    """Whether nobody has changed an attention layer, and it calls the kernel that compiling leaves alone."""
    kind = getattr(getattr(part, "config", None), "_attn_implementation", None)
    return kind == PLAIN and isinstance(part.forward, MethodType)
