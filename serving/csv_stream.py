"""Predictions for a CSV of any size, in batches and in the order of its rows."""

import csv
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError, DataError
from .predictor import Prediction, Predictor

_ROWS = 32  # in a request
_REQUESTS = 4  # under way at once
_LONGEST_FIELD = 16 * 2**20  # characters; csv's own limit is 131,072

Row = tuple[int, list[str]]  # its line in the file, its values


def predict_csv(
    predictor: Predictor,
    file: Path,
    columns: Sequence[str],
    out: IO[str],
    advance: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write the CSV with the columns `predicted` and `score` added.

    Args:
        predictor: the model.
        file: a CSV in UTF-8 with a header.
        columns: which columns the model's inputs are, in the order text, text_pair; or the one of
            pictures' paths, from the CSV's folder on.
        out: where to write.
        advance: called with how many rows were written.

    Returns:
        how many rows there were.

    Raises:
        ConfigError: the file cannot be read, or the model takes another number of columns.
        DataError: a column is missing, or a row has too many or too few values; what came before
            is written.
        ServerError: the server refused, or did not answer in time.
    """
    if len(columns) != len(predictor.inputs):
        raise ConfigError(
            f"{predictor.path} takes {' and '.join(predictor.inputs)}: name a column for each with "
            f"--column; found {', '.join(columns) or 'none'}."
        )
    try:
        opened = file.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None
    before = csv.field_size_limit(min(_LONGEST_FIELD, sys.maxsize))
    with opened:
        try:
            return _predict(predictor, file, _rows(file, opened), columns, out, advance)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: is not UTF-8 (byte {error.start} of a part of it).") from None
        except OSError as error:
            place = getattr(out, "name", "the output")
            raise ConfigError(
                f"{place}: the predictions cannot be written: {error.strerror}. Mend that, or name "
                f"another file with -o."
            ) from None
        finally:  # the limit is the whole process's, and what TFX reads is checked by it
            csv.field_size_limit(before)


def _predict(
    predictor: Predictor,
    file: Path,
    rows: Iterator[Row],
    columns: Sequence[str],
    out: IO[str],
    advance: Callable[[int], None],
) -> int:
    _, header = next(rows, (1, []))
    if missing := [name for name in columns if name not in header]:
        raise DataError(
            f"{file}: has no column {', '.join(missing)}; it has {', '.join(header) or 'none'}. "
            f"Name the model's with --column."
        )
    places = [header.index(name) for name in columns]
    writer = csv.writer(out)
    writer.writerow([*header, "predicted", "score"])
    total = 0
    waiting: deque[tuple[list[Row], Future[list[Prediction]]]] = deque()

    def write() -> None:
        nonlocal total
        batch, answer = waiting.popleft()
        for (_, values), prediction in zip(batch, answer.result(), strict=True):
            writer.writerow([*values, prediction.label, f"{prediction.score:.6g}"])
        total += len(batch)
        advance(len(batch))

    with ThreadPoolExecutor(_REQUESTS) as pool:
        try:
            for batch in _batches(rows):
                inputs: list[list[Any]] = [[row[place] for _, row in batch] for place in places]
                if predictor.takes_images:
                    inputs = [[file.parent / path for path in inputs[0]]]
                waiting.append((batch, pool.submit(predictor.predict, *inputs)))
                if len(waiting) > _REQUESTS:
                    write()
        finally:  # a bad row must not lose the good ones before it
            while waiting:
                write()
    return total


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """The rows in requests of a size; those before a bad row, then its error."""
    batch: list[Row] = []
    wrong = None
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == _ROWS:
                yield batch
                batch = []
    except DataError as error:
        wrong = error
    if batch:
        yield batch
    if wrong is not None:
        raise wrong


def _rows(file: Path, opened: IO[str]) -> Iterator[Row]:
    reader = csv.reader(opened, strict=True)
    width = None
    try:
        for values in reader:
            if not values:
                continue
            width = width or len(values)
            if len(values) != width:
                raise DataError(
                    f"{file}:{reader.line_num}: {len(values)} values found, {width} expected as in "
                    f"the header. Put texts with commas in quotes."
                )
            yield reader.line_num, values
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: is no CSV: {error}.") from None
