"""How far is form B from the bare matrix products it consists of, and what do the others cost?

    python -m benchmarks.crossing

Every variant runs forward and backward in turn, round after round, so that what else the machine
does meets all of them; ratios to the bare products are taken within a round. With one thread on a
CPU the clock is the thread's own. Memory is the resident memory of a process of its own. Prints
a Markdown table.

Shapes: S candidates, F fields, D width; L layers, I maps in, H out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.crossing.cross import CrossNetV2
from modules.crossing.separation import Form, Separation
from modules.crossing.slice_cross import CrossLayers

BARE = "bare products"


@dataclass(frozen=True)
class Sizes:
    """Of one measurement."""

    batch: int
    fields: int
    width: int
    layers: int
    device: str

    def input(self) -> Tensor:
        """(S, F, D) field vectors."""
        shape = (self.batch, self.fields, self.width)
        return torch.randn(shape, device=self.device, requires_grad=True)

    def form(self, form: Form, rank: int | None = None) -> Separation:
        """As the presets have it: B with residual and bias."""
        extras = form == "cross"
        return Separation(
            self.fields,
            self.width,
            self.layers,
            form=form,
            rank=rank,
            residual=extras,
            layer_bias=extras,
        ).to(self.device)


class BareProducts:
    """The batched products of form B and no more: one forward and two backward for each layer."""

    def __init__(self, sizes: Sizes) -> None:
        shape = (sizes.width, sizes.batch, sizes.fields)
        self.x_DSF, self.gradient_DSF = (torch.randn(shape, device=sizes.device) for _ in "xg")
        self.weight_LDFF = torch.randn(
            sizes.layers, sizes.width, sizes.fields, sizes.fields, device=sizes.device
        )

    def forward(self) -> None:
        """One product a layer."""
        for weight in self.weight_LDFF:
            torch.bmm(self.x_DSF, weight.mT)

    def backward(self, _: None) -> None:
        """The gradients of a layer's input and of its weight."""
        for weight in self.weight_LDFF:
            torch.bmm(self.gradient_DSF, weight)
            torch.bmm(self.gradient_DSF.mT, self.x_DSF)


class Part:
    """A network from field vectors to a logit."""

    def __init__(self, network: nn.Module, sizes: Sizes) -> None:
        self.network, self.fields_SFD = network, sizes.input()

    def forward(self) -> Tensor:
        """(S,) logits."""
        return self.network(self.fields_SFD)

    def backward(self, logits: Tensor) -> None:
        """Gradients of all parameters and of the field vectors."""
        self.network.zero_grad()
        self.fields_SFD.grad = None
        logits.sum().backward()


class LayerAtATime(nn.Module):
    """Form B as batched products, autograd left to itself."""

    def __init__(self, part: Separation) -> None:
        super().__init__()
        self.part = part

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        x = x0 = fields.permute(2, 0, 1).contiguous()
        pooled = []
        for layer in self.part.layers:
            x = torch.addcmul(x, x0, torch.baddbmm(layer.bias, x, layer.weight.mT))
            pooled.append(x.sum(0))
        return self.part.head(torch.cat(pooled, dim=1)).squeeze(1)


class Reference(nn.Module):
    """A form as its equation says, in the layout in which field vectors come."""

    def __init__(self, part: Separation) -> None:
        super().__init__()
        self.part = part

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        x, pooled = fields, []
        for layer in self.part.layers:
            x = _equation(layer, x, fields)
            pooled.append(x.sum(2))
        return self.part.head(torch.cat(pooled, dim=1)).squeeze(1)


def _equation(layer: nn.Module, x: Tensor, x0: Tensor) -> Tensor:
    """(S, I, D) and (S, F, D) -> (S, H, D)."""
    if hasattr(layer, "u"):
        u_DIH, v_DFH = layer.u[..., 0], layer.v[..., 0]
        return torch.einsum("sid,dih->shd", x, u_DIH) * torch.einsum("sjd,djh->shd", x0, v_DFH)
    if layer.weight.dim() == 4:
        products_SIFD = x[:, :, None] * x0[:, None]
        return torch.einsum("sijd,djih->shd", products_SIFD, layer.weight)
    return x0 * (torch.einsum("dij,sjd->sid", layer.weight, x) + layer.bias[:, 0].T) + x


class Compiled(Part):
    """A network through ``torch.compile``; its first step pays for it."""

    def __init__(self, network: nn.Module, sizes: Sizes) -> None:
        super().__init__(torch.compile(network), sizes)
        begin = time.perf_counter()
        self.backward(self.forward())
        print(f"# compiled {type(network).__name__} in {time.perf_counter() - begin:.1f} s")


Variant = BareProducts | Part
VARIANTS: dict[str, tuple[int, Callable[[Sizes], Variant]]] = {
    BARE: (1, BareProducts),
    "B": (1, lambda s: Part(s.form("cross"), s)),
    "B, a layer at a time": (1, lambda s: Part(LayerAtATime(s.form("cross")), s)),
    "B, reference": (4, lambda s: Part(Reference(s.form("cross")), s)),
    "B, compiled": (1, lambda s: Compiled(s.form("cross"), s)),
    "B, a layer at a time, compiled": (1, lambda s: Compiled(LayerAtATime(s.form("cross")), s)),
    "B, reference, compiled": (4, lambda s: Compiled(Reference(s.form("cross")), s)),
    "A1": (1, lambda s: Part(s.form("filter", rank=1), s)),
    "A1, reference": (4, lambda s: Part(Reference(s.form("filter", rank=1)), s)),
    "A": (4, lambda s: Part(s.form("filter"), s)),
    "A, reference (outer product stored)": (8, lambda s: Part(Reference(s.form("filter")), s)),
    "DCN-V2": (
        2,
        lambda s: Part(CrossNetV2(s.fields, s.width, s.layers).to(s.device), s),
    ),
}
"""Name -> rounds for one turn (slow ones have fewer turns), and how to make it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--fields", type=int, default=39)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = Sizes(
        arguments.batch, arguments.fields, arguments.width, arguments.layers, arguments.device
    )
    if arguments.memory_of:
        print(json.dumps(memory(arguments.memory_of, sizes)))
        return
    check(sizes)
    names = [BARE, *(name for name in arguments.variants if name != BARE)]
    report(names, sizes, arguments.rounds, arguments.threads)


def check(sizes: Sizes) -> None:
    """What is compared says the same, gradients included."""
    for part in (sizes.form("cross"), sizes.form("filter", rank=1), sizes.form("filter")):
        few = sizes.input()[:64].detach()
        networks: list[nn.Module] = [part, Reference(part)]
        if isinstance(part.layers, CrossLayers):
            networks.append(LayerAtATime(part))
        results = []
        for network in networks:
            fields = few.clone().requires_grad_()
            logits = network(fields)
            results.append((logits, torch.autograd.grad(logits.sum(), fields)[0]))
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-3, atol=1e-3)


def report(names: list[str], sizes: Sizes, rounds: int, threads: int) -> None:
    """Prints the table."""
    variants = {name: VARIANTS[name][1](sizes) for name in names}
    seconds = time_in_turns(variants, sizes, rounds, threads)
    bare = seconds[BARE]
    print(
        "| variant | forward ms | backward ms | forward / bare | backward / bare | both / bare "
        "| rows/s | kept MB | peak MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        own = seconds[name]
        forward, backward, both = (
            [part(own[turn]) / part(bare[turn]) for turn in own]
            for part in (lambda s: s[0], lambda s: s[1], sum)
        )
        step = statistics.median(sum(times) for times in own.values())
        bytes_of = _memory_in_child(name, sizes, threads)
        print(
            f"| {name} "
            + "".join(
                f"| {1e3 * statistics.median(s[i] for s in own.values()):.1f} " for i in (0, 1)
            )
            + "".join(f"| {_median_and_quartiles(r)} " for r in (forward, backward, both))
            + f"| {sizes.batch / step:,.0f} "
            f"| {bytes_of['kept'] / 1e6:.0f} | {bytes_of['peak'] / 1e6:.0f} |",
            flush=True,
        )


def _median_and_quartiles(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def time_in_turns(
    variants: dict[str, Variant], sizes: Sizes, rounds: int, threads: int
) -> dict[str, dict[int, tuple[float, float]]]:
    """Variant -> round -> seconds of forward and backward."""
    clock = time.thread_time if sizes.device == "cpu" and threads == 1 else time.perf_counter

    def timed(call: Callable, *given: object) -> tuple[float, object]:
        _wait(sizes.device)
        begin = clock()
        result = call(*given)
        _wait(sizes.device)
        return clock() - begin, result

    seconds: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in variants}
    for turn in range(-1, rounds):  # the one before the first warms up
        for name, variant in variants.items():
            if turn % VARIANTS[name][0] and turn >= 0:
                continue
            forward, result = timed(variant.forward)
            backward, _ = timed(variant.backward, result)
            if turn >= 0:
                seconds[name][turn] = (forward, backward)
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory_in_child(name: str, sizes: Sizes, threads: int) -> dict[str, int]:
    arguments = [f"--{key}={value}" for key, value in vars(sizes).items()]
    command = [sys.executable, "-m", "benchmarks.crossing", *arguments, f"--threads={threads}"]
    # every tensor is then memory of its own, which goes back to the system when it is freed
    malloc = {"MMAP_MAX": 2**20, "MMAP_THRESHOLD": 2**16, "TRIM_THRESHOLD": 2**17}
    environment = os.environ | {f"MALLOC_{key}_": str(value) for key, value in malloc.items()}
    done = subprocess.run(
        [*command, "--memory-of", name], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def memory(name: str, sizes: Sizes) -> dict[str, int]:
    """Bytes beyond parameters and input: kept from forward to backward, and the peak of a step.

    Gradients of the parameters and of the input are part of the peak.
    """
    variant = VARIANTS[name][1](sizes)
    variant.backward(variant.forward())  # libraries take their own memory in the first step
    if isinstance(variant, Part):
        variant.network.zero_grad()
        variant.fields_SFD.grad = None
    if sizes.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        now, most = torch.cuda.memory_allocated, torch.cuda.max_memory_allocated
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
        now, most = (lambda: _resident("VmRSS")), (lambda: _resident("VmHWM"))
    start = now()
    result = variant.forward()
    kept = now() - start
    variant.backward(result)
    return {"kept": kept, "peak": most() - start}


def _resident(what: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if what in line)
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
