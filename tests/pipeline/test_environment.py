"""`${NAME}` in the YAML: what is put in, what is written back, and what never is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from espalier import Config, ConfigError, masking
from espalier.cli import app
from espalier.pipeline.compress import Aim
from espalier.pipeline.config import load_section
from espalier.pipeline.page import save
from espalier.pipeline.progress import quiet
from espalier.pipeline.results import RunResult

SECRET = "s3/Cret+key=="
YAML = """\
name: reviews
data:
  csv: ${DATA}/reviews.csv
  text: text
  label: label
model: {family: bert, start: tiny}
train:
  epochs: ${EPOCHS}
push:
  to: models/$${NAME}
secrets: [BEAM_KEY]
beam:
  runner: portable
  options:
    job_endpoint: localhost:1
    s3_secret_access_key: ${BEAM_KEY}
"""  # line 3 is data.csv, 8 train.epochs, 10 push.to, 11 secrets, 16 the key


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that YAML names; what a test hides is no secret to the next."""
    for name, value in {"DATA": "/data/${x}", "EPOCHS": "2", "BEAM_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(masking, "_names", {})
    monkeypatch.setattr(masking, "_hidden", {})


def load(folder: Path, text: str = YAML, *overrides: str) -> Config:
    """Load the text as job.yaml."""
    file = folder / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return Config.load(file, overrides)


def refusal(folder: Path, text: str = YAML, *overrides: str) -> list[str]:
    """The lines of the error that loading the text gives, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_values_are_put_in_and_written_back(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.data.csv == "/data/${x}/reviews.csv"  # a value is not looked at again
    assert config.train.epochs == 2
    assert config.push.to == "models/${NAME}"
    assert config.beam.options["s3_secret_access_key"] == SECRET
    text = config.to_yaml()
    assert SECRET not in text
    assert "s3_secret_access_key: ${BEAM_KEY}" in text
    assert load(tmp_path, text) == config


def test_an_override_is_expanded_too(tmp_path: Path) -> None:
    assert load(tmp_path, YAML, "push.to=${DATA}/m").push.to == "/data/${x}/m"
    (line,) = refusal(tmp_path, YAML, "push.to=${NOT_SET}")
    assert line.startswith("job.yaml:9: push.to: the variable NOT_SET is not set")


def test_an_alias_is_expanded_once(tmp_path: Path) -> None:
    text = YAML.replace("text: text", 'text: &columns ["$${A}"]')
    config = load(tmp_path, text + "evaluate: {slices: *columns}\n")
    assert config.data.texts == config.evaluate.slices == ["${A}"]


def test_python_is_not_affected() -> None:
    data = {"csv": "${DATA}", "text": "text", "label": "label"}
    config = Config(
        name="a", data=data, model={"family": "bert", "start": "tiny"}, push={"to": "m"}
    )
    assert config.data.csv == "${DATA}"
    assert "csv: $${DATA}" in config.to_yaml()


FAULTS = {
    "not set": (
        ("${DATA}", "${NOT_SET}"),
        "job.yaml:3: data.csv: the variable NOT_SET is not set; set it, or write $${ for a plain "
        "${.",
    ),
    "no name": (
        ("${EPOCHS}", "${EPOCHS:-3}"),
        "job.yaml:8: train.epochs: `${` begins the name of a variable, as in ${NAME}; write $${ "
        "for a plain ${.",
    ),
    "braces": (
        ("to: models/$${NAME}", "{to: ${NAME}}"),
        "job.yaml:10: not valid YAML: expected ',' or '}', but got '{'. Between braces write it in "
        'quotes: "${NAME}"',
    ),
    "what the value is": (
        ("${EPOCHS}", "${DATA}"),
        "job.yaml:8: train.epochs: should be a valid integer, unable to parse string as an "
        "integer; found '/data/${x}'",
    ),
    "a secret that would be recorded": (
        ("models/$${NAME}", "models/${BEAM_KEY}"),
        "job.yaml:10: push.to: BEAM_KEY is one of `secrets:`, and this key is recorded with every "
        "run. Only beam.options is not: use a secret there, or none.",
    ),
    "a secret's name": (
        ("[BEAM_KEY]", '["${BEAM_KEY}"]'),
        "job.yaml:11: secrets.0: String should match pattern '^[A-Za-z_][A-Za-z0-9_]*$'; found "
        "'${BEAM_KEY}'",
    ),
}


@pytest.mark.parametrize(("change", "line"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_a_sentence_with_its_line(
    change: tuple[str, str], line: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, YAML.replace(*change)) == [line]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("abc", "shorter than 4 characters"),
        ("two words", "has a blank"),
        ("0000", "digits alone"),
    ],
)
def test_a_secret_that_cannot_be_masked_is_refused(
    value: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAM_KEY", value)
    (line,) = refusal(tmp_path)
    assert line.startswith("job.yaml:11: secrets.0: the value of BEAM_KEY") and why in line
    assert value not in line.replace("job.yaml", "")


def test_an_error_has_the_name_and_not_the_value(tmp_path: Path) -> None:
    lines = refusal(tmp_path, YAML.replace("runner: portable", "runner: direct"))
    assert SECRET not in "".join(lines)
    key = "    s3_secret_access_key: ${BEAM_KEY}"
    lines = refusal(tmp_path, YAML.replace(key, f"    a: [{SECRET!r}]"))
    assert SECRET not in "".join(lines) and "${BEAM_KEY}" in "".join(lines)


def test_a_section_of_a_file_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROP", "0.02")
    file = tmp_path / "recipe.yaml"
    text = "data: ${NOT_SET}\ncompress:\n  budget: {accuracy_drop: '${DROP}'}\n"
    file.write_text(text, encoding="utf-8")
    assert load_section(file, "compress", Aim).budget.limits["accuracy_drop"].value == 0.02


def test_what_is_written_is_masked(tmp_path: Path) -> None:
    load(tmp_path)
    why = f"refused: {SECRET} or s3%2FCret%2Bkey%3D%3D"
    RunResult(name="a", run="1", status="failed", failure=why).save(tmp_path)
    save(f"<p>{why}</p>", tmp_path / "page.html")
    for file in ("1.json", "page.html"):
        assert "refused: ${BEAM_KEY} or ${BEAM_KEY}" in (tmp_path / file).read_text()


def test_the_log_is_masked_whoever_writes_to_it(tmp_path: Path) -> None:
    load(tmp_path)
    log = tmp_path / "log.txt"
    with quiet(log):
        print(f"from Python {SECRET}")
        os.write(2, f"from C {SECRET}\n".encode())
        subprocess.run(["echo", f"from a child {SECRET}"], check=True)
    wanted = {f"from {who} ${{BEAM_KEY}}" for who in ("Python", "C", "a child")}
    for _ in range(100):  # the process that writes it is behind
        if wanted <= set(log.read_text().splitlines()):
            break
        time.sleep(0.1)
    assert set(log.read_text().splitlines()) == wanted


def test_the_log_is_whole_when_its_writer_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from espalier import masking;"
        "from espalier.pipeline.progress import quiet; masking.hide('BEAM_KEY', sys.argv[1])\n"
        "with quiet(Path(sys.argv[2])):\n"
        " print('before', sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    log = tmp_path / "log.txt"
    done = subprocess.run([sys.executable, "-c", code, SECRET, str(log)])
    assert done.returncode == -9
    for _ in range(100):
        if log.read_text():
            break
        time.sleep(0.1)
    assert log.read_text() == "before ${BEAM_KEY}\n"


def test_a_log_on_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    """Nor does what writes it say so on the terminal."""
    code = (
        "import os, sys; from pathlib import Path; from espalier import masking;"
        "from espalier.pipeline.progress import quiet; masking.hide('BEAM_KEY', sys.argv[1])\n"
        "with quiet(Path('/dev/full')):\n"
        " for _ in range(9): os.write(2, b'x' * 9999 + b'\\n')\n"
        "print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code, SECRET], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_screen_is_masked(tmp_path: Path) -> None:
    load(tmp_path, YAML.replace("${DATA}", str(tmp_path)).replace("${EPOCHS}", "1"))
    # Not a reference: only the stream can know it.
    done = CliRunner().invoke(app, ["ls", str(tmp_path / f"x{SECRET}.yaml")])
    assert done.exit_code == 2
    assert "no such file" in done.output
    done = CliRunner().invoke(app, ["ls", str(tmp_path / "job.yaml"), "--set", f"runs={SECRET}"])
    assert "runs: the value of a secret stands in this key" in done.stderr.replace("\n", " ")
    assert SECRET not in done.output
    assert SECRET not in done.output


def test_a_secret_is_not_compiled(tmp_path: Path) -> None:
    config = load(tmp_path, YAML.replace("${DATA}", str(tmp_path)))
    assert config.secrets == ["BEAM_KEY"]
    done = CliRunner().invoke(app, ["compile", str(tmp_path / "job.yaml")])
    assert done.exit_code == 2
    assert "beam.options.s3_secret_access_key is ${BEAM_KEY}, a secret" in done.stderr
