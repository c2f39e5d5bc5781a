"""Why a pushed model says what it says of one row: which row, and how the answer is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..components.image_example_gen.sample import MAX_BYTES
from ..components.names import SPLITS
from ..errors import ConfigError
from ..serving.predictor import newest_version
from ..trainer.restore import described
from . import page
from .config import Config
from .raw_rows import find_rows

if TYPE_CHECKING:
    from ..trainer.explain import Explanation

_MOST_WORDS = 12  # in the terminal's table
_FOR, _AGAINST = (110, 180, 255), (255, 170, 90)  # RGB, below black letters


@dataclass(frozen=True)
class Asked:
    """The row that is explained.

    Attributes:
        place: where a person finds it.
        example: the serialized raw tf.Example.
        label: what the data says that it is; "" where nobody has said.
    """

    place: str
    example: bytes
    label: str = ""


@dataclass(frozen=True)
class Explained:
    """What `explain` came to."""

    version: Path
    asked: Asked
    found: "Explanation"

    @property
    def verdict(self) -> str:
        """One sentence: the score, and what it is made of."""
        found, parts = self.found, "the words"
        nothing = "a text that says nothing"
        if found.pixels is not None:
            nothing, parts = "a black picture", "the pixels"
        sentence = (
            f"{found.label} scores {found.score:.3f}; {nothing} scores {found.baseline:.3f}, "
            f"{parts} add {found.parts.sum():+.3f}."
        )
        if self.asked.label:
            sentence += f" The data says: {self.asked.label}."
        return sentence


def explain(
    model: str | Path,
    *,
    texts: list[str] | None = None,
    image: Path | None = None,
    row: int | None = None,
    data: str | None = None,
    label: str | None = None,
) -> Explained:
    """Explain one row's score by integrated gradients; see `trainer.explain`.

    Args:
        model: a model's folder of versions, or one version; a compressed one too.
        texts: the text, or both of a pair. This, `image` or `row` is given.
        image: a picture's file.
        row: a row of the data, the first one is 1.
        data: where the row is; else the test rows, or the one source that the version was made of.
        label: whose score is explained; the likeliest if None.

    Raises:
        ConfigError, DataError: the version, or what is asked about it, cannot be used.
    """
    version = newest_version(Path(model))
    facts = described(str(version))
    if row is not None:
        asked = _of_data(version, facts, row, data)
    elif image is not None:
        asked = _of_image(facts, image)
    else:
        asked = _of_texts(facts, texts or [])
    from ..trainer.explain import Explainer  # imports TensorFlow

    return Explained(version, asked, Explainer(str(version))(asked.example, label))


def _of_texts(facts: Mapping[str, Any], texts: list[str]) -> Asked:
    columns = facts["inputs"]
    if facts["kind"] != "text" or len(texts) != len(columns):
        wanted = "--image FILE" if facts["kind"] == "image" else "--text TEXT"
        wanted += " --pair TEXT" if len(columns) > 1 else ""
        raise ConfigError(f"give what this model reads: {wanted}, or --row N.")
    values = {name: text.encode() for name, text in zip(columns, texts, strict=True)}
    return Asked(" | ".join(texts), _example(values))


def _of_image(facts: Mapping[str, Any], file: Path) -> Asked:
    if facts["kind"] != "image":
        raise ConfigError(f"{file}: this model reads no pictures; give --text TEXT, or --row N.")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{file}: a file of more than {MAX_BYTES:,} bytes.")
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None
    return Asked(str(file), _example({facts["inputs"][0]: content}))


def _of_data(version: Path, facts: Mapping[str, Any], row: int, data: str | None) -> Asked:
    import tensorflow as tf

    config = Config.of_version(version)
    on_bad_image = config.data.on_bad_image if config else "fail"
    rows = find_rows(data or _evaluated(version, config), facts, on_bad_image)
    # Read as strings, whatever the columns were in training: the label is not asked.
    names = (*facts["inputs"], facts["label_column"])
    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
    for found in islice(rows.read(spec), row - 1, row):
        example = found.example()
        features = tf.train.Example.FromString(example).features.feature
        values = features[facts["label_column"]].bytes_list.value
        return Asked(found.place, example, "|".join(v.decode() for v in values))
    count = sum(1 for _ in rows.read(spec))
    raise ConfigError(f"--row {row}: there are {count:,} rows; the first one is 1.")


def _evaluated(version: Path, config: Config | None) -> str:
    """Where the rows are that a version was evaluated on; all rows where one source was split."""
    if config is None or config.data.format not in ("csv", "images"):
        raise ConfigError(f"{version}: --row needs rows; name a CSV or pictures with --data PATH.")
    sources = config.data.sources
    return next(sources[name] for name in (*reversed(SPLITS), "all") if name in sources)


def _example(values: Mapping[str, bytes]) -> bytes:
    import tensorflow as tf

    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in values.items()
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return bytes(example.SerializeToString())


# --- how it is shown ----------------------------------------------------------------------------


def coloured(found: "Explanation") -> Text:
    """A text's words for a terminal: blue speaks for the label, orange against it."""
    text = Text()
    for word, shade in zip(found.words, page.shades(found.parts), strict=True):
        colour = _FOR if shade > 0 else _AGAINST
        mixed = ",".join(str(round(255 + abs(shade) * (c - 255))) for c in colour)
        text.append(word, f"black on rgb({mixed})" if abs(shade) > 0.05 else "")
        text.append(" ")
    return text


def table(found: "Explanation") -> Table:
    """The words that matter most, and what each adds to the score."""
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    drawn.add_column("word")
    drawn.add_column("adds", justify="right")
    for word, part in _ordered(found)[:_MOST_WORDS]:
        drawn.add_row(Text(word), f"{part:+.3f}")
    return drawn


def _ordered(found: "Explanation") -> list[tuple[str, float]]:
    pairs = zip(found.words, map(float, found.parts), strict=True)
    return sorted(pairs, key=lambda pair: -abs(pair[1]))


def told(explained: Explained) -> dict[str, Any]:
    """JSON-ready: the scores, and each word with what it adds, or each pixel's row by row."""
    found = explained.found
    parts = found.parts.tolist()
    return {
        "version": str(explained.version),
        "row": explained.asked.place,
        "is": explained.asked.label,
        "label": found.label,
        "score": found.score,
        "baseline": found.baseline,
        "words": list(found.words),
        "parts": parts,
    }


def write(explained: Explained, file: Path) -> Path:
    """Write the page that shows it.

    Raises:
        ConfigError: it cannot be written.
    """
    from ..trainer.explain import facts

    found = explained.found
    parts = "Words" if found.pixels is None else "Pixels"
    blocks = [
        page.text(f"{parts} in blue speak for {found.label}, those in orange against it."),
        page.why(facts(found)),
    ]
    if found.words:
        rows = [(word, f"{part:+.4f}") for word, part in _ordered(found)]
        blocks.append(page.table("What each word adds to the score", ("word", "adds"), rows))
    method = (
        f"By integrated gradients (Sundararajan et al., 2017). What the parts add and the "
        f"difference of the two scores are {found.gap:.4f} apart."
    )
    sections = [page.Section("Why", [*blocks, page.text(method)])]
    title = f"{explained.version.parent.name}: why it says {found.label}"
    subtitle = f"version {explained.version.name}; {explained.asked.place[:500]}"
    return page.save(page.render(title, subtitle, "", explained.verdict, sections), file)
