"""Gain of each optimization: one step of LunaModel, training or inference, without loader and engine.

Each variant is timed in turn with the book's network: PyTorch's default layout, float32, whole batches.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import show
from speed import time_in_turn

from luna_monai.networks import LunaModel
from luna_monai.training import has_bfloat16


@dataclass(frozen=True)
class Variant:
    """One way to run the network."""

    name: str
    channels_last: bool = True
    split_size: int | None = None
    batch_norm: bool = False
    autocast: bool = False  # to bfloat16
    onednn_bfloat16: bool = False  # oneDNN rounds float32 to bfloat16 inside its convolutions
    compile_mode: str | None = None  # of torch.compile
    deterministic: bool = False  # only deterministic algorithms of cuDNN, as in the bundle's training
    try_algorithms: bool = False  # cuDNN benchmarks its algorithms for each shape


BOOK = Variant("the book's", channels_last=False)
ON_CPU = [
    BOOK,
    Variant("channels last"),
    *(Variant(f"channels last, in parts of {size}", split_size=size) for size in (2, 4, 8)),
    Variant("channels last, batch normalization", batch_norm=True),
    Variant("channels last, batch normalization, first block in parts of 4", batch_norm=True, split_size=4),
    Variant("channels last, oneDNN in bfloat16", onednn_bfloat16=True),
    Variant("channels last, bfloat16", autocast=True),
    *(Variant(f"channels last, bfloat16, in parts of {size}", split_size=size, autocast=True) for size in (2, 4, 8)),
]
#: What the bundle's precision ``auto`` uses. Without bfloat16 in hardware, autocast takes many times as long.
AS_TRAINED_ON_CPU = next(
    variant
    for variant in ON_CPU
    if variant.autocast == has_bfloat16(torch.device("cpu")) and variant.split_size == 4 and not variant.batch_norm
)
COMPILED_ON_CPU = [
    Variant("channels last, compiled", compile_mode="default"),
    Variant("channels last, bfloat16, compiled", autocast=True, compile_mode="default"),
]
ON_GPU = [
    BOOK,
    Variant("channels last"),
    Variant("bfloat16", channels_last=False, autocast=True),
    Variant("channels last, bfloat16", autocast=True),
    Variant("channels last, bfloat16, cuDNN benchmark mode", autocast=True, try_algorithms=True),
    Variant("channels last, bfloat16, deterministic", autocast=True, deterministic=True),
]
AS_TRAINED_ON_GPU = ON_GPU[-1]
COMPILED_ON_GPU = [
    Variant(f"channels last, bfloat16, deterministic, {name}", autocast=True, deterministic=True, compile_mode=mode)
    for name, mode in (("compiled", "default"), ("CUDA graphs", "reduce-overhead"))
]


def make_step(variant: Variant, training: bool, batch_size: int, device: torch.device) -> Callable[[], None]:
    """Return a function that runs one step and waits until it is finished."""
    torch.manual_seed(0)
    layout = torch.channels_last_3d if variant.channels_last else torch.contiguous_format
    network = LunaModel(split_size=variant.split_size, batch_norm=variant.batch_norm)
    network.to(device, memory_format=layout).train(training)  # type: ignore[call-overload]  # torch's types lack it
    optimizer = torch.optim.Adam(network.parameters())
    run = network if variant.compile_mode is None else torch.compile(network, mode=variant.compile_mode)
    image = (torch.randn(batch_size, 1, 32, 48, 48, device=device) * 500).to(memory_format=layout)
    label = torch.arange(batch_size, device=device) % 2

    def step() -> None:
        torch.backends.cudnn.deterministic = variant.deterministic
        torch.backends.cudnn.benchmark = variant.try_algorithms
        optimizer.zero_grad(set_to_none=True)
        if variant.onednn_bfloat16:
            torch.backends.mkldnn.conv.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.autocast), torch.set_grad_enabled(training):
            logits = run(image)
        if training:
            torch.nn.functional.cross_entropy(logits.float(), label).backward()
            optimizer.step()
        if variant.onednn_bfloat16:
            torch.backends.mkldnn.conv.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def measure(
    variants: list[Variant], training: bool, batch_size: int, device: torch.device, repeats: int
) -> dict[str, float]:
    """Print the table and return the median of samples per second by variant; report variants that fail."""
    torch.compiler.reset()  # else the next batch size is compiled for dynamic shapes, and CUDA graphs keep memory
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    steps, rows = {}, []
    for variant in variants:
        try:
            step = make_step(variant, training, batch_size, device)
            step()
            step()  # the second call of a compiled network is recorded as a CUDA graph
        except RuntimeError as error:  # out of memory, or no compiler
            rows.append((variant.name, "failed", str(error).splitlines()[0]))
        else:
            steps[variant.name] = step
    seconds = time_in_turn(steps, repeats)
    rates = {name: batch_size / statistics.median(times) for name, times in seconds.items()}
    baseline = next(iter(seconds.values()), [])
    for name, times in seconds.items():
        ratio = statistics.median(book / ours for book, ours in zip(baseline, times, strict=True))
        rows.append((name, f"{rates[name]:,.1f}", f"{ratio:.2f} ×"))
    what = f"{'training' if training else 'inference'}, batch of {batch_size}"
    show([what, "samples/s", f"of {next(iter(seconds), 'nothing')}"], rows)
    print(flush=True)
    return rates


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"CPU, threads: {arguments.threads}, medians of {arguments.repeats}\n")
    variants = ON_CPU + (COMPILED_ON_CPU if arguments.compile else [])
    for training in (True, False):
        measure(variants, training, arguments.batch_size, torch.device("cpu"), arguments.repeats)


if __name__ == "__main__":
    main()
