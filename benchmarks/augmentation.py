"""Time of augmentation relative to a training step: ``python benchmarks/augmentation.py [--threads 2]``.

Prints the median times of a training step (forward, backward, Adam) of LunaModel, channels_last_3d, in float32 or with
autocast to bfloat16, and of the bundle's augmentation of the same batch, and their ratio. Both are measured in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import yaml
from speed import time_in_turn

from luna_monai.networks import LunaModel
from luna_monai.share import bundle_dir
from luna_monai.transforms import RandAugmentCandidates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)

    config = yaml.safe_load((bundle_dir() / "configs" / "train.yaml").read_text())["train"]["augmentation"]
    augment = RandAugmentCandidates(**{key: value for key, value in config.items() if key != "_target_"})
    network = LunaModel().to(device, memory_format=torch.channels_last_3d)
    optimizer = torch.optim.Adam(network.parameters())
    image = torch.empty(arguments.batch_size, 1, 32, 48, 48).uniform_(-1000, 1000).to(device)
    image = image.contiguous(memory_format=torch.channels_last_3d)
    label = (torch.arange(arguments.batch_size) % 2).to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            logits = network(image)
        torch.nn.functional.cross_entropy(logits.float(), label).backward()
        optimizer.step()

    def finished(go: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            go()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    work = {"training step": finished(step), "augmentation": finished(lambda: augment(image))}
    seconds = time_in_turn(work, arguments.repeats)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"batch of {arguments.batch_size}, {arguments.threads} threads, {device}, {arguments.precision}, "
        f"median of {arguments.repeats}"
    )
    for name, value in medians.items():
        print(f"{name:14} {1000 * value:9.1f} ms")
    print(f"augmentation takes {100 * medians['augmentation'] / medians['training step']:.1f} % of a training step")


if __name__ == "__main__":
    main()
