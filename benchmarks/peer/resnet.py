"""The peer of benchmarks/image_training.py: the same ResNet-20 in a plain PyTorch loop.

Needs: a Python with torch and numpy (`pip install torch numpy`). Takes: a minute.

    python resnet.py --images train-images-idx3-ubyte.gz --labels train-labels-idx1-ubyte.gz ...

He et al. 2015, section 4.2, with shortcuts without weights; batches come out of memory, moved by
up to an eighth and mirrored. Prints one JSON object; `images_per_second` counts training steps,
making of batches included.
"""

import argparse
import gzip
import json
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SKIPPED_STEPS = 5  # the first steps allocate memory and choose kernels


class Block(nn.Module):
    """Two convolutions and a shortcut: every second pixel, zeros in new channels (option A)."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        """Make the layers."""
        super().__init__()
        self.first = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(filters)
        self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(filters)
        self.stride, self.new = stride, filters - channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, F, H / stride, W / stride]."""
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return functional.relu(x + y)


def resnet20(channels: int, classes: int) -> nn.Module:
    """[B, C, H, W] -> logits [B, classes]."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    ]  # fmt: skip
    width = 16
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(Block(width, filters, 2 if stage and not block else 1))
            width = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def read(file: str) -> np.ndarray:
    """The array in a gzipped idx file of bytes."""
    with gzip.open(file) as stream:
        data = stream.read()
    ranks = data[3]
    shape = np.frombuffer(data, ">u4", ranks, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ranks).reshape(shape)


def batch(pixels: torch.Tensor, rows: torch.Tensor, mean: float, deviation: float) -> torch.Tensor:
    """Rows of uint8 [N, H, W] as float32 [B, 1, H, W], moved and mirrored at random."""
    side, most = pixels.shape[1], pixels.shape[1] // 8
    padded = functional.pad(pixels[rows], (most, most, most, most))  # (B, H + 2m, W + 2m)
    steps = torch.arange(side)
    down = steps + torch.randint(0, 2 * most + 1, (len(rows), 1))
    right = steps + torch.randint(0, 2 * most + 1, (len(rows), 1))
    right = torch.where(torch.rand(len(rows), 1) < 0.5, right.flip(1), right)
    moved = padded[torch.arange(len(rows))[:, None, None], down[:, :, None], right[:, None, :]]
    return ((moved.float() - mean) / deviation)[:, None]


def main() -> None:
    """Time the steps and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--bf16", action="store_true", help="autocast, channels last")
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    pixels, labels = torch.from_numpy(read(args.images).copy()), read(args.labels).copy()
    labels = torch.from_numpy(labels).long()
    mean, deviation = pixels.float().mean().item(), pixels.float().std().item()
    model = resnet20(1, 10)
    if args.bf16:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    order, times, losses = torch.randperm(len(labels)), [], []
    for step in range(SKIPPED_STEPS + args.steps):
        begin = time.perf_counter()
        rows = order[step * args.batch_size : (step + 1) * args.batch_size]
        inputs = batch(pixels, rows, mean, deviation)
        if args.bf16:
            inputs = inputs.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = model(inputs)
        loss = functional.cross_entropy(logits.float(), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        times.append(time.perf_counter() - begin)
    timed = times[SKIPPED_STEPS:]
    print(json.dumps({
        "system": f"PyTorch {torch.__version__}",
        "images_per_second": args.batch_size * len(timed) / sum(timed),
        "step_ms": 1000 * sum(timed) / len(timed),
        "parameters": sum(p.numel() for p in model.parameters()),
        "first_loss": losses[0], "last_loss": losses[-1],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
