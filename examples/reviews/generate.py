"""Write the sample data: short labelled reviews, put together from the sentences in `phrases/`.

    python examples/reviews/generate.py [--rows N] [--seed S] [--out DIR]

A review's verdict hangs on how its parts are joined: nearly every word and phrase stands in
negative and positive rows alike, so that counting words is of little use (README.md). The same
arguments give the same bytes on every machine.
"""

import argparse
import csv
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
HERE = Path(__file__).parent
CATEGORIES = ("books", "electronics", "hotels", "kitchen", "restaurants", "travel")
LABELS = ("negative", "positive")
LIST_SECTIONS = ("adjectives", "comparatives", "names", "acts", "causes", "clauses", "shared")
# What a review compares with, and the tense in which its category is spoken of.
OTHERS = {
    "books": ("her last one", "the one before it", "the one I read last month"),
    "electronics": ("my old one", "the one it replaced", "the cheaper one"),
    "hotels": ("the one across the road", "the one by the station", "the last one"),
    "kitchen": ("my old one", "the one it replaced", "the cheaper one"),
    "restaurants": ("the one next door", "the one by the station", "our usual place"),
    "travel": ("the last one", "the one last year", "the cheaper one"),
}
PAST = ("hotels", "restaurants", "travel")
REPORTERS = {
    "my sister": "she", "my brother": "he", "a friend": "she", "my neighbour": "he",
    "my aunt": "she", "my uncle": "he", "a colleague": "he", "my cousin": "she",
}  # fmt: skip
OPENERS = ("Honestly, ", "In short, ", "All in all, ", "To be fair, ", "For the record, ", "Well, ")
LONGEST = 20  # words
FIRST_PERSON = re.compile(r"\b(I|me|my|we|us|our|ours)\b")
# A fact that holds one of these is not denied or expected: it would sound odd, or say little.
RIGID = re.compile(
    r"\b(no|not|never|nothing|nobody|nowhere|barely|only|and|early|half|twice|than|one|"
    r"overnight|fortune)\b"
)
SLOT = re.compile(r"\{([a-z]+?)(2?)([+-]?)\}|\{([a-z ]+)/([a-z ]+)\}")


class Fact(NamedTuple):
    """A subject and what may be said of it: `ends[True]` for the thing, `ends[False]` against."""

    subject: str
    ends: tuple[str, str]


class Category(NamedTuple):
    """One category's phrases: pairs (against, for) by section, facts and adjectives by thing."""

    name: str
    pairs: dict[str, list[tuple[str, str]]]
    adjectives: dict[str, list[tuple[str, str]]]
    facts: dict[str, list[Fact]]


class Pattern(NamedTuple):
    """How a (negative, positive) review of this build reads, with slots."""

    texts: tuple[str, str]


def lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(section, fields) of every line of a phrase file."""
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            yield section, [field.strip() for field in line.split(" | ")]


def read_category(name: str) -> Category:
    """The category's phrases. Every thing has the shared facts as well as its own."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    own: dict[str, list[Fact]] = {}
    adjectives: dict[str, list[tuple[str, str]]] = {}  # that suit one thing alone
    for section, fields in lines(HERE / "phrases" / f"{name}.txt"):
        *subject, good, bad = fields
        if subject:
            own.setdefault(section, []).append(Fact(subject[0], (bad, good)))
        elif section not in LIST_SECTIONS:
            adjectives.setdefault(section, []).append((bad, good))
        else:
            pairs.setdefault(section, []).append((bad, good))
    shared = own.pop("shared")
    facts = {thing: of_thing + shared for thing, of_thing in own.items()}
    return Category(name, pairs, adjectives, facts)


def read_patterns() -> dict[str, tuple[int, list[Pattern]]]:
    """Per group: its share and its patterns."""
    groups: dict[str, tuple[int, list[Pattern]]] = {}
    for section, fields in lines(HERE / "phrases" / "patterns.txt"):
        name, share = section.split()
        pattern = Pattern((fields[-1], fields[0]))
        groups.setdefault(name, (int(share), []))[1].append(pattern)
    return groups


def read_verbs() -> dict[str, str]:
    """Past form -> base form."""
    return dict(fields[0].split() for _, fields in lines(HERE / "phrases" / "verbs.txt"))


class Writer:
    """Fills a pattern's slots for one thing and one verdict; no subject or phrase comes twice."""

    def __init__(self, rng: random.Random, category: Category, verbs: dict[str, str]) -> None:
        self.rng, self.category, self.verbs = rng, category, verbs
        self.thing = rng.choice(sorted(category.facts))
        self.other = rng.choice(OTHERS[category.name])
        self.who = rng.choice(sorted(REPORTERS))
        self.used: set[str] = set()

    def write(self, pattern: Pattern, positive: bool) -> str:
        """One review."""

        def fill(slot: re.Match[str]) -> str:
            kind, _, sign, if_positive, if_negative = slot.groups()
            if if_positive:
                return str(if_positive if positive else if_negative)
            return self.slot(kind, positive == (sign == "+"))

        text = SLOT.sub(fill, pattern.texts[positive])
        if self.rng.random() < 0.05:
            first = text[0] if re.match(r"I\b", text) else text[0].lower()
            text = self.rng.choice(OPENERS) + first + text[1:]
        return tidy(text)

    def slot(self, kind: str, good: bool) -> str:
        """The words for one slot; `good` says whether they praise the thing."""
        fixed = {
            "thing": f"this {self.thing}",
            "item": self.thing,
            "is": "was" if self.category.name in PAST else "is",
            "other": self.other,
            "who": self.who,
            "he": REPORTERS[self.who],
            "very": self.rng.choice(("", "", "really ", "truly ")),
        }
        if kind in fixed:
            return fixed[kind]
        if kind == "short":
            return self.slot("cause", good).removeprefix("the ")
        if kind in ("fact", "said", "to", "would", "not"):
            return self.fact(kind, good)
        section = {"adj": "adjectives", "word": "adjectives", "cmp": "comparatives"}.get(
            kind, f"{kind}s"
        )
        pairs = self.category.pairs[section]
        if section == "adjectives":
            pairs = pairs + self.category.adjectives.get(self.thing, [])
        if kind == "word":
            pairs = [pair for pair in pairs if " " not in pair[good]]
        # The low price and the high price cannot both stand in one review.
        return self.fresh(pairs, lambda pair: pair[True if kind == "cause" else good])[good]

    def fact(self, kind: str, good: bool) -> str:
        """A fact in the form that the slot asks for."""
        end = good != (kind == "not")
        facts = self.category.facts[self.thing]
        if kind == "said":
            facts = [f for f in facts if not FIRST_PERSON.search(f"{f.subject} {f.ends[end]}")]
        if kind in ("to", "would", "not"):
            facts = [f for f in facts if self.base(f.ends[end]) and not RIGID.search(f.ends[end])]
        fact = self.fresh(facts, lambda fact: fact.subject)
        verb, _, rest = fact.ends[end].partition(" ")
        base = self.base(fact.ends[end])
        denied = f"{verb} not" if base == "be" else f"did not {base}"
        middle = {"to": f"to {base}", "would": f"would {base}", "not": denied}.get(kind, verb)
        return f"{fact.subject} {middle} {rest}".strip()

    def base(self, predicate: str) -> str | None:
        """The base form of the predicate's verb, if it has one."""
        return self.verbs.get(predicate.split()[0])

    def fresh(self, choices: list[T], key: Callable[[T], str]) -> T:
        """One of the choices whose key has not been used in this review."""
        choice = self.rng.choice([one for one in choices if key(one) not in self.used])
        self.used.add(key(choice))
        return choice


def tidy(text: str) -> str:
    """Capitals where sentences begin and nowhere else, and `an` before vowels."""
    text = re.sub(r"(^|[.?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def generate(rows: int, seed: int) -> list[tuple[str, str, str]]:
    """Unique (text, category, label) rows, as many of each category and label as can be."""
    rng = random.Random(seed)
    groups, verbs = read_patterns(), read_verbs()
    names = sorted(groups)
    cells = [(read_category(name), good) for name in CATEGORIES for good in (False, True)]
    seen: set[str] = set()
    made = []
    for row in range(rows):
        category, good = cells[row % len(cells)]
        while True:
            group = rng.choices(names, [groups[name][0] for name in names])[0]
            pattern = rng.choice(groups[group][1])
            text = Writer(rng, category, verbs).write(pattern, good)
            if text not in seen and len(re.findall(r"\w+", text)) <= LONGEST:
                break
        seen.add(text)
        made.append((text, category.name, LABELS[good]))
    rng.shuffle(made)
    return made


def main() -> None:
    """Write reviews.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "data", metavar="DIR")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "reviews.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "category", "label"))
        writer.writerows(generate(options.rows, options.seed))


if __name__ == "__main__":
    main()
