"""The peer of benchmarks/compression.py: the trained BERT in ONNX Runtime, fp32 and dynamic int8.

Needs: a Python with torch, transformers, onnx, onnxscript and onnxruntime. Started by the
benchmark, which hands over the trained weights and asks for batches in turn with its own.

    python onnx_bert.py CHECKPOINT WEIGHTS.npz TEST.csv FOLDER

Prints {name: {accuracy, bytes}}, then for each line of row numbers on standard input one line of
{name: milliseconds}: tokenizing, padding to the longest row, and the model, with two threads.
"""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import AutoModel, AutoTokenizer

LENGTH = 64


class Classifier(nn.Module):
    """The encoder, the mean of its last hidden states, one dense layer."""

    def __init__(self, checkpoint: str, weights: "np.lib.npyio.NpzFile") -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(
            checkpoint, add_pooling_layer=False, attn_implementation="eager"
        )
        self.logits = nn.Linear(*weights["logits/0"].shape)
        dense(self.logits, weights, "logits")
        self._take_over(weights)

    def _take_over(self, weights: "np.lib.npyio.NpzFile") -> None:
        embeddings = self.bert.embeddings
        take(embeddings.word_embeddings.weight, weights["token_embedding/0"])
        take(embeddings.position_embeddings.weight, weights["position_embedding/0"])
        take(embeddings.token_type_embeddings.weight, weights["segment_embedding/0"])
        norm(embeddings.LayerNorm, weights, "embeddings_layer_norm")
        for number, layer in enumerate(self.bert.encoder.layer):
            name, attention = f"transformer_layer_{number}", layer.attention
            for part in ("query", "key", "value"):
                dense(getattr(attention.self, part), weights, f"{name}_{part}")
            dense(attention.output.dense, weights, f"{name}_attention_output")
            norm(attention.output.LayerNorm, weights, f"{name}_attention_output_layer_norm")
            dense(layer.intermediate.dense, weights, f"{name}_intermediate")
            dense(layer.output.dense, weights, f"{name}_output")
            norm(layer.output.LayerNorm, weights, f"{name}_output_layer_norm")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, C]."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return self.logits((states * mask).sum(1) / mask.sum(1))


def take(parameter: torch.Tensor, array: np.ndarray) -> None:
    """Set a parameter's values."""
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array.reshape(parameter.shape))))


def dense(layer: nn.Linear, weights: "np.lib.npyio.NpzFile", name: str) -> None:
    """Set a dense layer out of Keras' kernel and bias."""
    take(layer.weight, weights[f"{name}/0"].T)
    take(layer.bias, weights[f"{name}/1"])


def norm(layer: nn.LayerNorm, weights: "np.lib.npyio.NpzFile", name: str) -> None:
    """Set a layer norm out of Keras' gamma and beta."""
    take(layer.weight, weights[f"{name}/0"])
    take(layer.bias, weights[f"{name}/1"])


def main(checkpoint: str, weights: str, test: str, folder: str) -> None:
    """Export, quantize, score the test rows, then answer with times."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = Classifier(checkpoint, np.load(weights)).eval()
    files = {"fp32": Path(folder, "fp32.onnx"), "dynamic int8": Path(folder, "int8.onnx")}
    given = tokenizer(["a few words", "more"], padding=True, return_tensors="pt")
    torch.onnx.export(
        model, (given["input_ids"], given["attention_mask"]), str(files["fp32"]),
        input_names=["input_ids", "attention_mask"], output_names=["logits"], dynamo=False,
        dynamic_axes={"input_ids": {0: "b", 1: "t"}, "attention_mask": {0: "b", 1: "t"}},
        opset_version=17,
    )  # fmt: skip
    quantize_dynamic(str(files["fp32"]), str(files["dynamic int8"]), weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    sessions = {
        name: onnxruntime.InferenceSession(str(file), options) for name, file in files.items()
    }
    with open(test, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = [row["text"] for row in rows]
    labels = np.array([int(row["label"]) for row in rows])

    def ask(session: onnxruntime.InferenceSession, batch: list[str]) -> np.ndarray:
        given = tokenizer(
            batch, padding=True, truncation=True, max_length=LENGTH, return_tensors="np"
        )
        names = ("input_ids", "attention_mask")
        found: np.ndarray = session.run(None, {n: given[n].astype(np.int64) for n in names})[0]
        return found

    facts = {}
    for name, session in sessions.items():
        said = [ask(session, texts[i : i + 32]).argmax(1) for i in range(0, len(texts), 32)]
        facts[name] = {
            "accuracy": float((np.concatenate(said) == labels).mean()),
            "bytes": files[name].stat().st_size,
        }
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        batch, times = [texts[place] for place in json.loads(line)], {}
        for name, session in sessions.items():
            begin = time.perf_counter()
            ask(session, batch)
            times[name] = 1000 * (time.perf_counter() - begin)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
