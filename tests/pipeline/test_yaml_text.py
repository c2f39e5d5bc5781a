"""YAML from a stranger: nothing is run or unrolled, and one sentence says what is wrong."""

import os
from pathlib import Path

import pytest

from espalier import Config, ConfigError
from espalier.kubeflow.spec import read_spec
from espalier.pipeline import yaml_text

JOB = """\
name: a
data: {csv: x.csv, text: t, label: l}
model: {family: bert, start: minilm}
push: {to: m}
"""
BOMB = "k0: &l0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"k{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
HOSTILE = {
    "bomb": (BOMB + JOB.replace("name: a", "name: *l8"), "with every alias"),
    "text by aliases": (
        JOB + f'sweep: {{a: [&a "{"x" * 50_000}"{", *a" * 9_000}]}}\n',
        "with every alias",
    ),
    "python": (
        JOB.replace("name: a", "name: !!python/object/apply:os.system [touch ran]"),
        "the tag",
    ),
    "tag of a scalar": (JOB.replace("name: a", "name: !mine a"), "the tag '!mine'"),
    "tag of a mapping": (JOB.replace("{to: m}", "!mine {to: m}"), "the tag '!mine'"),
    "bytes": (JOB.replace("name: a", "name: !!binary aGVsbG8="), "of the type bytes"),
    "deep": (JOB + f"sweep: {'{a: ' * 5000}1{'}' * 5000}\n", "levels deep"),
    "deep, short of the reader's own end": (
        JOB + f"sweep: {'{a: ' * 60}1{'}' * 60}\n",
        "levels deep",
    ),
    "deep by aliases": (
        "k0: &l0 [a]\n" + "".join(f"k{n}: &l{n} [*l{n - 1}]\n" for n in range(1, 60)) + JOB,
        "levels deep",
    ),
    "endless": ("&t\n" + JOB + "card: *t\n", "within what it names"),
    "merged with itself": (JOB.replace("{to: m}", "&p {to: m, <<: *p}"), "not valid YAML"),
    "an open quote": (JOB + f'x: "{"${a}" * 1000}\n', "not valid YAML"),
    "NUL": (JOB.replace("{to: m}", r'{to: "m\0b"}'), "control character 0x00"),
    "a terminal's escape": (JOB.replace("name: a", r'name: "\e]52;c;aGk="'), "character 0x1B"),
    "a number": (JOB + f"sweep: {{a: [0x{'f' * 5000}]}}\n", "more than 64 bits"),
    "large": (JOB + f"# {'x' * yaml_text.MOST_BYTES}", "larger than 100 kB"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_it_ends_in_a_sentence(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, wanted = HOSTILE[case]
    Path("job.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=wanted) as caught:
        Config.load("job.yaml")
    assert len(str(caught.value)) < 5000
    assert "\x1b" not in str(caught.value)
    assert os.listdir() == ["job.yaml"]


def test_a_device_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="larger than 100 kB"):
        Config.load(tmp_path / "job.yaml")


def test_aliases_and_merges_that_people_write(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    both = JOB + "sweep: {train.seed: &s [1, 2], train.epochs: *s}\n"
    file.write_text(both + "card: &c {contact: me}\n", encoding="utf-8")
    assert Config.load(file).sweep["train.epochs"] == [1, 2]
    file.write_text(JOB.replace("{to: m}", "{<<: {keep: 2}, to: m}"), encoding="utf-8")
    assert Config.load(file).push.keep == 2


def test_many_faults_are_told_by_the_first_of_them(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB + "".join(f"k{n}: 1\n" for n in range(500)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\.\.\. and 480 more faults"):
        Config.load(file)


@pytest.mark.parametrize("text", [BOMB, "[" * 100_000, "a: 2001-99-99", "x" * 3_000_000])
def test_a_compiled_pipeline_of_a_stranger(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^a\.yaml: "):
        read_spec(text, "a.yaml")
