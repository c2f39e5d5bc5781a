"""BERT as Espalier loads it against Hugging Face transformers on PyTorch: token ids, hidden states.

Needs: a Python with torch and transformers (`pip install torch transformers`), given as --peer.
Takes: about a minute on two cores, most of it imports.

    python benchmarks/bert_reference.py --peer PYTHON [--start minilm] [--csv FILE] [--text text]

Expect for minilm on SST-2's test rows: all token ids equal, hidden states within 1e-5 (float32).
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

PEER = Path(__file__).parent / "peer" / "bert_reference.py"
CSV = Path(__file__).parents[2] / "shared" / "data" / "sst2_sentence" / "test.csv"
# Where the two tokenizers might part: accents, CJK, odd spaces, marks, unknown and long words.
HARD = [
    "Ça déjà vu, naïve façade!",
    "北京大学 is in 中国。",
    "東京タワー",
    "한국어 문장",
    "Привет, мир",
    "non\u00a0breaking\u3000space\u200bzero\tTab\r\nline",
    "e\u0301 combining",
    "İstanbul ΣΊΣΥΦΟΣ",
    "don't — “quoted” … (c) [x] {y} $5.00 50% a_b #tag @me",
    "ﬁne ™ ½ ² ﾊﾝｶｸ ＦＵＬＬ",
    "🙂 ok",
    "",
    "   ",
    "a" * 100,
    "b" * 101,
    "ก" * 60,
    "http://example.org/a?b=c&d=e",
    "\x00\ufffd\x07bell",
]


def main() -> None:
    """Parse the options, compare, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help="Python with torch and transformers")
    parser.add_argument("--start", default="minilm", help="checkpoint, as in model.start")
    parser.add_argument("--csv", type=Path, default=CSV, help="rows to compare")
    parser.add_argument("--text", default="text", help="the text's column")
    parser.add_argument("--rows", type=int, default=256, help="rows whose hidden states count")
    parser.add_argument("--length", type=int, default=64, help="tokens per row")
    options = parser.parse_args()
    if not options.csv.exists():
        sys.exit(f"{options.csv} is not there. Name a CSV file with --csv.")
    with options.csv.open(encoding="utf-8", newline="") as stream:
        texts = [row[options.text] for row in csv.DictReader(stream)]
    print(compare(options.peer, options.start, texts, options.rows, options.length))


def compare(peer: str, start: str, texts: list[str], rows: int, length: int) -> str:
    """Return the table: agreement of ids over all texts, of hidden states over the first rows."""
    from espalier.trainer import checkpoints

    folder = checkpoints.resolve(start, progress=print)
    with tempfile.TemporaryDirectory() as temporary:
        questions, answers = Path(temporary) / "texts.json", Path(temporary) / "answers.npz"
        questions.write_text(json.dumps({"texts": texts + HARD, "rows": rows, "length": length}))
        subprocess.run([peer, str(PEER), str(folder), str(questions), str(answers)], check=True)
        theirs = dict(np.load(answers))
    ours = run(str(folder), texts + HARD, rows, length)
    equal = (ours["ids"] == theirs["ids"]).all(axis=1)
    lines = ["| what | rows | result |", "|---|---|---|"]
    for name, part in (("token ids", equal[: len(texts)]), ("hard token ids", equal[len(texts) :])):
        lines.append(f"| {name} | {len(part)} | {part.sum()} equal |")
    real = (theirs["ids"][:rows] != 0) & equal[:rows, None]
    for index, (our, their) in enumerate(zip(ours["hidden"], theirs["hidden"], strict=True)):
        name = f"layer {index}" if index else "embeddings"
        apart = np.abs(our - their)[real]
        lines.append(f"| {name} | {rows} | differs by {apart.max():.1e} at most |")
    differing = [text for text, same in zip(texts + HARD, equal, strict=True) if not same]
    return "\n".join(lines + [f"different ids: {text!r}" for text in differing[:20]])


def run(folder: str, texts: list[str], rows: int, length: int) -> dict[str, np.ndarray]:
    """Return ids int64 [texts, length] and hidden float32 [layers + 1, rows, length, width]."""
    import tensorflow as tf
    import tf_keras as keras

    from espalier.trainer.families import bert
    from espalier.trainer.input import Source

    settings = bert.Settings(start=folder, sequence_length=length)
    ids = bert.preprocess({"text": tf.constant(texts)}, settings)["token_ids"].numpy()
    model = bert.build(settings, 2, bert.learned(settings, Source([], {}, 2)))
    count = sum(layer.name.startswith("transformer_layer_") for layer in model.layers)
    names = ["embeddings_layer_norm", *(f"transformer_layer_{index}" for index in range(count))]
    states = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    hidden = states.predict({"token_ids": ids[:rows]}, batch_size=32, verbose=0)
    return {"ids": ids, "hidden": np.stack(hidden)}


if __name__ == "__main__":
    main()
