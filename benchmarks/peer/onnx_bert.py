"""The peer of benchmarks/compression.py and export.py: a trained BERT in ONNX Runtime.

Needs: a Python with torch, transformers, onnx, onnxscript and onnxruntime.

    python onnx_bert.py convert CHECKPOINT WEIGHTS.npz FOLDER
    python onnx_bert.py serve FILE.onnx CHECKPOINT TEST.csv THREADS longest|max_length

`convert` writes fp32.onnx and, dynamically quantized, int8.onnx. `serve` is a worker of
`rounds`: it tokenizes, pads to the longest row of the batch or to 64, and asks the model.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from rounds import serve

LENGTH = 64


class Classifier(nn.Module):
    """The encoder, the mean of its last hidden states, one dense layer."""

    def __init__(self, checkpoint: str, weights: "np.lib.npyio.NpzFile") -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(checkpoint)
        names = [name for name in weights if name.endswith("_query/0")]
        config.num_hidden_layers = len(names)  # a student has fewer
        self.bert = AutoModel.from_config(config, attn_implementation="eager")
        self.bert.pooler = None
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


def convert(checkpoint: str, weights: str, folder: str) -> None:
    """Write the model with these weights, in float32 and in int8."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = Classifier(checkpoint, np.load(weights)).eval()
    file = Path(folder, "fp32.onnx")
    given = tokenizer(["a few words", "more"], padding=True, return_tensors="pt")
    torch.onnx.export(
        model, (given["input_ids"], given["attention_mask"]), str(file),
        input_names=["input_ids", "attention_mask"], output_names=["logits"], dynamo=False,
        dynamic_axes={"input_ids": {0: "b", 1: "t"}, "attention_mask": {0: "b", 1: "t"}},
        opset_version=17,
    )  # fmt: skip
    quantize_dynamic(str(file), str(Path(folder, "int8.onnx")), weight_type=QuantType.QInt8)


def answer(file: str, checkpoint: str, test: str, threads: str, padding: str) -> None:
    """Load, then answer."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(file, options)

    def ask(texts: list[str]) -> "np.ndarray":
        given = tokenizer(
            texts, padding=padding, truncation=True, max_length=LENGTH, return_tensors="np"
        )
        names = ("input_ids", "attention_mask")
        found: np.ndarray = session.run(None, {n: given[n].astype(np.int64) for n in names})[0]
        return found.argmax(axis=1)

    serve(ask, test)


if __name__ == "__main__":
    {"convert": convert, "serve": answer}[sys.argv[1]](*sys.argv[2:])
