"""Which pictures there are: in class folders, in split folders of those, in idx files, in a CSV.

Whatever can be told from names and small files is found here, all faults together, and quickly;
the pictures themselves are looked at by `sample.look`.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..faults import Faults, counted, listed
from ..names import SPLITS
from ..row_split.rule import Rule
from . import idx
from .folders import ClassFolders, is_picture, readable, split_folders, visible
from .sample import Picture
from .table import LabelTable

Listing = dict[str, list[Picture]]


def list_pictures(
    sources: Mapping[str, str],
    *,
    label: str,
    multi_label: bool,
    skip_missing: bool,
    faults: Faults,
    warnings: list[str],
) -> Listing:
    """Every picture by split: `all` if one source is still to be split, else train and the others
    that are there (where eval alone is missing, a tenth of train will be it).

    Args:
        sources: a path per split, or one under `all`: a folder of class folders, or (`all` only)
            of split folders with those; a folder of idx files; a CSV.
        label: the label's column in a CSV.
        multi_label: whether a picture may have any number of labels; needs a CSV.
        skip_missing: list a CSV's pictures that are not there, for `look` to find them bad.
        faults: gets what is wrong; with any, the listing may lack pictures.
        warnings: gets sentences about what is odd.
    """
    reader = _Reader(label, multi_label, skip_missing, faults, warnings)
    places: dict[Path, str] = {}
    found: Listing = {}
    for split, source in sources.items():
        path = Path(source).expanduser()
        other = places.setdefault(path.resolve(), split)
        if other != split:
            faults.add(path, None, f"both {other} and {split}", "Give each its own pictures.")
            continue
        for key, pictures in reader.read(split, path).items():
            found[key] = pictures
    found = {split: found[split] for split in ("all", *SPLITS) if split in found}
    if not faults:
        _compare(found, sources, faults, warnings)
    return found


def output_splits(sources: Mapping[str, str], rule: Rule | None = None) -> list[str]:
    """The splits that the Examples will have, by a look at the sources' first level only.

    Args:
        sources: as `list_pictures` takes them.
        rule: how one source is split; 8:1:1 if None.
    """
    keys = set(sources)
    if "all" in keys:
        root = Path(sources["all"]).expanduser()
        keys = set(_keys(root)) if root.is_dir() else keys
    if "all" in keys:
        return (rule or Rule()).splits
    if {"train", "test"} <= keys:
        return list(SPLITS)
    return [split for split in SPLITS if split in keys]


def _keys(root: Path) -> Iterable[str]:
    if files := _idx_files(root):
        return idx.pairs(files, Faults())
    return split_folders(root) or ("all",)


def _idx_files(root: Path) -> list[Path]:
    files = [file for file in visible(root) if file.is_file() and not is_picture(file.name)]
    return [file for file in files if idx.is_idx(file)]


class _Reader:
    """Reads one source after the other; the settings and the notes are the same for all."""

    def __init__(
        self,
        label: str,
        multi_label: bool,
        skip_missing: bool,
        faults: Faults,
        warnings: list[str],
    ) -> None:
        self.label, self.multi_label, self.skip_missing = label, multi_label, skip_missing
        self.faults, self.warnings = faults, warnings
        self._columns: list[str] = []  # of the first CSV

    def read(self, split: str, path: Path) -> Listing:
        """The pictures of one source by split."""
        if path.is_dir():
            with self.faults.of_reading(path):
                return self._read_folder(split, path)
            return {}
        if path.suffix.lower() == ".csv" and path.is_file():
            return {split: self._read_table(path)}
        advice = "Expected a folder of class folders, of idx files, or a CSV."
        if path.is_file():
            advice = f"Name its folder: {path.parent}." if idx.is_idx(path) else advice
            self.faults.add(path, None, "a file, and not a CSV", advice)
        else:
            names = [one.name for one in visible(path.parent)] if path.parent.is_dir() else []
            near = difflib.get_close_matches(path.name, names, 1)
            hint = f"Did you mean {path.with_name(near[0])}?" if near else advice
            self.faults.add(readable(str(path)), None, "no such file or folder", hint)
        return {}

    def _read_folder(self, split: str, root: Path) -> Listing:
        files = _idx_files(root)
        if self.multi_label:
            what = "data.multi_label is true, and a picture in a folder has the folder's label"
            self.faults.add(root, None, what, "Name a CSV with the labels, | between them.")
            return {}
        if files:
            return self._read_idx(split, root, files)
        folders = split_folders(root)
        if not folders:
            return {split: self._read_classes([(root, "")], root)}
        if split != "all":
            what = f"named as {split}, and it holds folders for {' and '.join(folders)}"
            self.faults.add(root, None, what, f"Name it once, `images: {root}`, or the folder.")
            return {}
        return self._read_splits(root, folders)

    def _read_splits(self, root: Path, folders: Mapping[str, list[Path]]) -> Listing:
        """A split's own class folders each; nothing else may stand beside them."""
        known = [folder for ones in folders.values() for folder in ones]
        for split, ones in folders.items():
            if len(ones) > 1:
                what = f"two folders for {split}: {listed([one.name for one in ones])}"
                self.faults.add(root, None, what, "Keep one of them.")
        for other in visible(root):
            if other.is_dir() and other not in known:
                names = " and ".join(folder.name for folder in known)
                what = f"neither train, eval nor test by its name, and it stands beside {names}"
                self.faults.add(other, None, what, "Rename it or move it elsewhere.")
        return {
            split: self._read_classes([(one, f"{one.name}/") for one in ones], root)
            for split, ones in folders.items()
        }

    def _read_classes(self, roots: list[tuple[Path, str]], source: Path) -> list[Picture]:
        pictures: list[Picture] = []
        for root, prefix in roots:
            one = ClassFolders(root, prefix, self.faults)
            pictures += one.pictures
            if count := sum(one.others.values()):
                kinds = ", ".join(f"{n:,} {kind}" for kind, n in one.others.most_common(4))
                self.warnings.append(
                    f"{root}: {counted(count, 'file')} left alone, not being named as pictures "
                    f"({kinds})."
                )
        return pictures

    def _read_idx(self, split: str, root: Path, files: list[Path]) -> Listing:
        pairs = idx.pairs(files, self.faults)
        if split != "all" and len(pairs) > 1:
            what = f"named as {split}, and it holds idx files for {' and '.join(pairs)}"
            self.faults.add(root, None, what, f"Name it once: `images: {root}`.")
            return {}
        found: Listing = {}
        for key, (images, labels) in pairs.items():
            values, file = idx.read_pair(images, labels, self.faults), str(images)
            found[split if key == "all" else key] = [
                Picture(f"{images.name}#{i}", file, i, (value,)) for i, value in enumerate(values)
            ]
        return found

    def _read_table(self, file: Path) -> list[Picture]:
        table = LabelTable(file, self.label, self.multi_label, self.skip_missing, self.faults)
        self.warnings += table.warnings
        self._columns = self._columns or table.columns
        if sorted(table.columns) != sorted(self._columns):
            self.faults.add(
                file,
                1,
                f"other columns than the file before it: {listed(table.columns)}",
                f"Expected {listed(self._columns)}.",
            )
        return table.pictures


def _compare(
    found: Listing, sources: Mapping[str, str], faults: Faults, warnings: list[str]
) -> None:
    """Hold the labels of eval and test against train's."""
    if "train" not in found:
        return
    labels = {split: {one for p in ps for one in p.labels} for split, ps in found.items()}
    known = labels.pop("train")
    for split, here in labels.items():
        place = sources.get(split) or sources.get("all", split)
        if unknown := sorted(here - known):
            near = difflib.get_close_matches(unknown[0], known, 1)
            faults.add(
                place,
                None,
                f"{split} has the label {listed(unknown[:5])}, and train has not",
                f"{f'Did you mean {near[0]!r}? ' if near else ''}A model cannot know it; train "
                f"has {listed(sorted(known)[:5])}.",
            )
        if lacking := sorted(known - here):
            warnings.append(
                f"{split} has no picture of {listed(lacking[:5])}: nothing will be known of how "
                f"well the model tells it."
            )
