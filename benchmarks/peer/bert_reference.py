"""The other side of benchmarks/bert_reference.py, on torch and transformers.

    python bert_reference.py FOLDER TEXTS.json ANSWERS.npz

Writes ids int64 [texts, length], and of the first rows the hidden states float32
[layers + 1, rows, length, width], the embeddings first.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import BertModel, BertTokenizer


def main(folder: str, questions: str, answers: str) -> None:
    """Tokenize all texts, run the model on the first rows, write both."""
    asked = json.loads(Path(questions).read_text())
    tokenizer = BertTokenizer.from_pretrained(folder)
    ids = tokenizer(
        asked["texts"],
        truncation=True,
        max_length=asked["length"],
        padding="max_length",
        return_tensors="pt",
    )["input_ids"]
    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    states = []
    with torch.no_grad():
        for part in ids[: asked["rows"]].split(32):
            output = model(part, attention_mask=(part != 0).long(), output_hidden_states=True)
            states.append(torch.stack(output.hidden_states).numpy())
    np.savez(answers, ids=ids.numpy(), hidden=np.concatenate(states, axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
