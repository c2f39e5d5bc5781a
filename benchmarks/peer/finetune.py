"""The peer of benchmarks/finetune.py: the same fine-tune on torch and transformers.

Needs: a Python with torch and transformers (`pip install torch transformers`); a BERT in Hugging
Face's form; CSV files with a text and a label. Takes: three minutes for 3 epochs of SST-2's
sentences from MiniLM on two quiet cores.

    python finetune.py --checkpoint FOLDER --train A.csv --eval B.csv --test C.csv [--bf16] ...

Written as transformers' Trainer would do it, without the Trainer's own cost: texts tokenized once
ahead, batches padded to their longest row, fused AdamW that spares biases and layer norms.
Prints one JSON object; `examples_per_second` counts training steps alone, collation included.
"""

import argparse
import csv
import json
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoTokenizer

WINDOW = 50  # batches sorted together, as transformers' LengthGroupedSampler has it
SKIPPED_STEPS = 10  # the first steps allocate memory and choose kernels

Rows = tuple[list[list[int]], torch.Tensor]  # token ids of each text; label ids int64 [N]


class Classifier(nn.Module):
    """An encoder, the mean of its last hidden states (or the first one), one dense layer.

    Both poolings have the checkpoint's encoder and no pooler of its own: what Espalier trains.
    """

    def __init__(self, checkpoint: str, classes: int, pooling: str, dropout: float) -> None:
        """Load the encoder; its own dropout rates are set to `dropout`."""
        super().__init__()
        config = AutoConfig.from_pretrained(
            checkpoint, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
        )
        self.encoder = AutoModel.from_pretrained(
            checkpoint, config=config, dtype=torch.float32, add_pooling_layer=False
        )
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(config.hidden_size, classes)
        nn.init.normal_(self.logits.weight, std=0.02)
        nn.init.zeros_(self.logits.bias)
        self.pooling = pooling

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids, mask int64 [B, T] -> logits [B, classes]."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, H)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        return self.logits(self.dropout(pooled))


def main() -> None:
    """Parse the options, train, print the result as JSON (and write it to --out)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("checkpoint", "train", "eval", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--text", default="text", help="the text's column")
    parser.add_argument("--label", default="label", help="the label's column")
    parser.add_argument("--rows", type=int, help="training rows to use; all by default")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens per row, at most")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--warmup", type=float, default=0.1, help="share of all steps")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--clip", type=float, default=0.0, help="gradients' norm; 0 is off")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--pooling", choices=("mean", "cls"), default="mean")
    parser.add_argument("--padding", choices=("longest", "max_length"), default="longest")
    parser.add_argument("--group-by-length", action="store_true", help="rows of like length")
    parser.add_argument("--bf16", action="store_true", help="torch.autocast in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-steps", type=int, help="stop early: for timing alone")
    parser.add_argument("--out", type=Path, help="a file for the JSON as well")
    settings = parser.parse_args()
    result = json.dumps(finetune(settings))
    if settings.out:
        settings.out.write_text(result)
    print(result)


def finetune(settings: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate; the test accuracy is that of the epoch with the lowest eval loss."""
    started = time.perf_counter()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    names: dict[str, int] = {}
    train = read(settings.train, settings, names)
    evaluation, test = (read(file, settings, names) for file in (settings.eval, settings.test))
    if settings.rows:
        train = train[0][: settings.rows], train[1][: settings.rows]
    model = Classifier(settings.checkpoint, len(names), settings.pooling, settings.dropout)
    optimizer = make_optimizer(model, settings)
    rate = make_schedule(optimizer, settings, -(-len(train[0]) // settings.batch_size))
    epochs: list[dict[str, float]] = []
    steps: list[tuple[int, float]] = []  # examples and seconds of every step
    for epoch in range(settings.epochs):
        steps += train_epoch(model, train, optimizer, rate, settings, epoch)
        if settings.max_steps and len(steps) >= settings.max_steps:
            steps = steps[: settings.max_steps]
            break
        loss, accuracy = evaluate(model, evaluation, settings)
        scores = {"eval_loss": loss, "eval_accuracy": accuracy}
        epochs.append({**scores, "test_accuracy": evaluate(model, test, settings)[1]})
        print(f"epoch {epoch + 1}: {epochs[-1]}", file=sys.stderr)
    timed = steps[SKIPPED_STEPS:]
    best = min(epochs, key=lambda scores: scores["eval_loss"], default={})
    return {
        "system": f"torch {torch.__version__}",
        "test_accuracy": best.get("test_accuracy"),
        "eval_accuracy": [scores["eval_accuracy"] for scores in epochs],
        "epochs": epochs,
        "examples_per_second": sum(n for n, _ in timed) / sum(s for _, s in timed),
        "steps": len(steps),
        "wall_seconds": time.perf_counter() - started,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()},
    }


def read(file: str, settings: argparse.Namespace, names: dict[str, int]) -> Rows:
    """Tokenize a CSV file, without padding. New labels are added to `names`."""
    with open(file, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    tokenizer = AutoTokenizer.from_pretrained(settings.checkpoint)
    texts = [row[settings.text] for row in rows]
    ids = tokenizer(texts, truncation=True, max_length=settings.length)["input_ids"]
    return ids, torch.tensor([names.setdefault(row[settings.label], len(names)) for row in rows])


def collate(
    rows: Rows, indices: list[int], width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and mask int64 [B, T] and labels [B]; T is `width`, or that of the longest row."""
    texts = [torch.tensor(rows[0][index]) for index in indices]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    if width:
        ids = functional.pad(ids, (0, width - ids.shape[1]))
    return ids, (ids != 0).long(), rows[1][indices]


def order(lengths: list[int], settings: argparse.Namespace, epoch: int) -> list[list[int]]:
    """Return the epoch's batches as row indices: at random, or by length within windows."""
    size = settings.batch_size
    random = torch.Generator().manual_seed(settings.seed * 1000 + epoch)
    indices = torch.randperm(len(lengths), generator=random).tolist()
    if not settings.group_by_length:
        return [indices[i : i + size] for i in range(0, len(indices), size)]
    batches = []
    for start in range(0, len(indices), WINDOW * size):
        window = sorted(indices[start : start + WINDOW * size], key=lambda i: lengths[i])
        batches += [window[i : i + size] for i in range(0, len(window), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=random).tolist()]


def make_optimizer(model: nn.Module, settings: argparse.Namespace) -> torch.optim.Optimizer:
    """Fused AdamW; biases and layer norms, which have one dimension, do not decay."""
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    spared = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, settings: argparse.Namespace, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then linear decay to 0."""
    steps = steps_per_epoch * settings.epochs
    warmup = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 1.0) * min((steps - step) / max(1, steps - warmup), 1.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_epoch(
    model: nn.Module,
    rows: Rows,
    optimizer: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    settings: argparse.Namespace,
    epoch: int,
) -> list[tuple[int, float]]:
    """Train on every row once. Return examples and seconds of each step, its collation included."""
    model.train()
    width = settings.length if settings.padding == "max_length" else None
    steps = []
    for batch in order([len(ids) for ids in rows[0]], settings, epoch)[: settings.max_steps]:
        started = time.perf_counter()
        ids, mask, labels = collate(rows, batch, width)
        with autocast(settings):
            loss = functional.cross_entropy(model(ids, mask).float(), labels)
        loss.backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        rate.step()
        optimizer.zero_grad(set_to_none=True)
        steps.append((len(batch), time.perf_counter() - started))
    return steps


@torch.inference_mode()
def evaluate(model: nn.Module, rows: Rows, settings: argparse.Namespace) -> tuple[float, float]:
    """Return the mean loss and the accuracy over all rows."""
    model.eval()
    by_length = sorted(range(len(rows[0])), key=lambda index: len(rows[0][index]))
    size = 4 * settings.batch_size
    loss, right = 0.0, 0
    for start in range(0, len(by_length), size):
        ids, mask, labels = collate(rows, by_length[start : start + size])
        with autocast(settings):
            logits = model(ids, mask).float()
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
    return loss / len(by_length), right / len(by_length)


def autocast(settings: argparse.Namespace) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 with --bf16; else nothing."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16)


if __name__ == "__main__":
    main()
