"""Write the page of the packages' licences out of what is installed: `python docs/licences.py`.

A test fails when it is out of date.
"""

import importlib.metadata
import re
from pathlib import Path

FOLDER = Path(__file__).parent
# Of licences that ask for the source of changes (MPL: of changed files; the rest: of more).
_COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL|Mozilla|GNU|Eclipse)", re.IGNORECASE)
_STRONG = re.compile(r"\b(A?GPL|LGPL|GNU)", re.IGNORECASE)
# Their metadata says nothing; this stands in the LICENSE file of the package.
_READ = {"namex": "Apache-2.0"}
_SHORT = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def licences() -> str:
    """The page: the packages of requirements.lock, then those for working on Espalier alone."""
    used, worked = (locked(FOLDER.parent / f"requirements{end}.lock") for end in ("", "-dev"))
    tables = {"With the pipeline": used, "For working on Espalier": sorted({*worked} - {*used})}
    found = {name: licence_of(name) for names in tables.values() for name in names}
    copyleft = [f"- {name}: {words}" for name, words in sorted(found.items()) if is_copyleft(words)]
    strong = [name for name, words in sorted(found.items()) if _STRONG.search(words)]
    lines = [
        "# Which licences do the packages have?",
        "",
        "Made by `python docs/licences.py` from what the packages say of themselves. Espalier",
        "ships none of them: set-up fetches them from the package index. What wheels bundle beside",
        "their own code is not listed (numpy and scipy: GCC's Fortran runtime).",
        "",
        "## Copyleft",
        "",
        "The MPL asks for the source of its own changed files alone, and Espalier changes none.",
        f"Under a GPL, an LGPL or an AGPL: {', '.join(strong) or 'none'}.",
        "",
        *copyleft,
    ]
    for title, names in tables.items():
        lines += ["", f"## {title}", "", "| package | licence |", "|---|---|"]
        lines += [f"| {name} | {found[name]} |" for name in names]
    return "\n".join(lines) + "\n"


def locked(lock: Path) -> list[str]:
    """The packages that a lock names, sorted."""
    text = lock.read_text(encoding="utf-8")
    return sorted(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==", text, re.MULTILINE))


def licence_of(name: str) -> str:
    """What an installed package says of its licence, in a word or an SPDX expression."""
    told = importlib.metadata.metadata(name)
    if expression := told.get("License-Expression"):
        return str(expression)
    named = [one.split(" :: ") for one in told.get_all("Classifier") or ()]
    classes = [one[-1] for one in named if one[0] == "License" and "pproved" not in one[-1]]
    words = next(iter((told.get("License") or "").strip().splitlines()), "")
    # A class says less than the word for it where there is one: BSD-3-Clause is a BSD License.
    if words and words != "UNKNOWN" and len(words) <= 40 and (is_copyleft(words) or not classes):
        return _of(words)
    return _of(", ".join(_SHORT.get(one, one) for one in sorted({*classes}))) or _READ[name]


def _of(words: str) -> str:
    return (
        "Apache-2.0"
        if re.fullmatch(
            r"Apache( Software)?( License)?[^,]*2?(\.0)?|Apache License, Version 2\.0",
            words.strip(),
        )
        else words.strip()
    )


def is_copyleft(words: str) -> bool:
    """Whether a licence is, or may be chosen to be, copyleft."""
    return bool(_COPYLEFT.search(words))


if __name__ == "__main__":
    (FOLDER / "licences.md").write_text(licences(), encoding="utf-8")
