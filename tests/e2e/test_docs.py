"""Every command, Python line and YAML of README.md and docs/ does what its page says.

A block of a page is one of four things, and the test fails where it is none:

- commands, up to the first empty line; what stands behind it is what they print. Each is run on the
  small job of `first_run`, in a folder where the names that the pages use exist (`desk`); `WORDS`
  says what is put in place of what. A command that cannot be run here is named in `NOT_RUN`, with
  the reason, and its arguments are still parsed by the real parser.
- Python: run, in the same folder.
- YAML: a whole configuration is loaded, a part of one is put into another that is whole.
- a fence that says that it is something else: ```text for what is printed, ```json, ...

In a sentence, `espalier ...` in backquotes is parsed: the command and its options must exist.
"""

import contextlib
import importlib.util
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from markdown_it import MarkdownIt
from ruamel.yaml import YAML, YAMLError
from typer.testing import CliRunner

from espalier import Client, Config, RunResult, ServerError
from espalier.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What is put in place of what before a command or a Python block is run, in this order.
WORDS = {
    "localhost:8500": "localhost:{grpc}",
    "localhost:8501": "localhost:{rest}",
    "http://localhost:8080": "{kubeflow}",
    # The run that is there already: nothing has changed, so it ends in a second.
    "run reviews.yaml": "run first.yaml",
    "run examples/reviews.yaml": "run first.yaml",
    '"examples/reviews.yaml", ["train.epochs=1"]': '"first.yaml", ["train.epochs=4"]',
    "-o reviews.yaml": "-o proposed.yaml",
    "--compare RUN": "--compare {run}",
    "rollback reviews.yaml": "rollback reviews.yaml --set push.to=models/later",
    "--request_log_rate 0.01": "--request_log_rate 1",
    "--concurrency 8": "--concurrency 2 --seconds 0.5 --warmup-seconds 0",
    "/srv/models/reviews": "{desk}/models/later",
    "1795542937": "{version}",
    "1795809030 1795809258": "{run} {run}",
    "1795543203": "{later}",
}
# Beginnings of commands that are not run, and why.
NOT_RUN = {
    "espalier run pictures.yaml": "trains for minutes; test_images.py trains on pictures",
    "espalier run orders.yaml": "another data set; test_splits.py samples",
    "espalier sweep": "trains again and again; test_reruns.py sweeps",
    "espalier --install-completion": "would change the shell's own files",
    "espalier explain models/digits": "needs that model; test_images.py explains a picture",
    "espalier predict models/pictures": "needs that model; test_images.py asks one so",
    "espalier recipes": "trains for minutes; test_compress_commands.py begins one",
    "espalier run reviews.yaml --set train.distribute": "two machines; see test_workers.py",
    "tensorflow_model_server": "not at hand; parsed by `espalier serve`, which has its flags",
    "make": "sets up, trains or tests for minutes; `make -n` must know the target",
    "kubectl": "needs a cluster; tests/kubeflow/test_manifests.py checks what is applied",
    "docker": "needs Docker's daemon, and builds for minutes",
    "pip": "would change this installation",
}
EXIT_CODES = {  # else 0
    "espalier drift": {0, 6},
    "espalier check reviews.yaml --set model.start=minilmm": {2},
}
PROGRAMS = {"espalier", "python", "cat", "cp", "curl", "tail", *NOT_RUN}
PYTHON = ("from ", "import ")


@dataclass(frozen=True)
class Block:
    """An indented or fenced block of a page: where it begins, its language, what is in it."""

    place: str
    language: str
    text: str


def tokens(page: Path) -> Any:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for token in tokens(page):
            if token.type in ("fence", "code_block"):
                place = f"{page.name}:{token.map[0] + 1}"
                yield Block(place, token.info.strip(), token.content)


def words_of(line: str) -> list[str]:
    """The words of a command, without variables set in front; [] if a shell would not take it."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def is_command(line: str) -> bool:
    return any(words_of(line)[:1] == [name.split()[0]] for name in PROGRAMS)


def is_yaml(text: str) -> bool:
    with contextlib.suppress(YAMLError):
        tree = YAML(typ="safe").load(text)
        return isinstance(tree, dict) and set(tree) <= set(Config.model_fields)
    return False


def kind_of(block: Block) -> str:
    """commands, python, yaml, other; "" for a block that does not say what it is."""
    named = {"": "", "sh": "commands", "bash": "commands", "python": "python", "yaml": "yaml"}
    if kind := named.get(block.language, "other"):
        return kind
    if is_command(block.text.replace("\\\n", " ").splitlines()[0]):
        return "commands"
    if block.text.startswith(PYTHON):
        return "python"
    return "yaml" if is_yaml(block.text) else ""


def lines_of(block: Block) -> list[str]:
    """The commands of a block: its lines, joined where a backslash says so."""
    before = block.text.split("\n\n")[0].replace("\\\n", " ")
    return [line for line in before.splitlines() if not line.startswith("#")]


BLOCKS: dict[str, list[Block]] = {k: [] for k in ("commands", "python", "yaml", "other", "")}
for _block in blocks():
    BLOCKS[kind_of(_block)].append(_block)


def as_typed(line: str) -> str:
    """The command alone: without the folder of its program, a remark, or spaces too many."""
    return " ".join(re.sub(r"(^| )\.venv/bin/", r"\1", re.sub(r"\s#.*", "", line)).split())


COMMANDS: dict[str, str] = {}  # and where each stands first: it is run once
for _block in BLOCKS["commands"]:
    for _line in lines_of(_block):
        COMMANDS.setdefault(as_typed(_line), _block.place)


def reason_not_to_run(command: str) -> str:
    command = shlex.join(words_of(command))
    return next((why for begin, why in NOT_RUN.items() if command.startswith(begin)), "")


RUN = {command: place for command, place in COMMANDS.items() if not reason_not_to_run(command)}


def parametrized(found: dict[str, str]) -> Any:
    ids = [f"{place} {command}"[:90] for command, place in found.items()]
    return pytest.mark.parametrize("command", found, ids=ids)


def each(kind: str) -> Any:
    return pytest.mark.parametrize("block", BLOCKS[kind], ids=[b.place for b in BLOCKS[kind]])


# --- what needs no run --------------------------------------------------------------------------


def test_every_block_says_what_it_is() -> None:
    assert [f"{b.place}: {b.text.splitlines()[0]}" for b in BLOCKS[""]] == [], (
        "neither commands of PROGRAMS, Python nor YAML; mark what is printed with ```text"
    )


def test_every_line_of_commands_is_one() -> None:
    lines = [(b.place, line) for b in BLOCKS["commands"] for line in lines_of(b)]
    assert [(place, line) for place, line in lines if not is_command(line)] == [], (
        "put an empty line before what the commands print, or name the program in NOT_RUN"
    )


@pytest.mark.parametrize("begin", NOT_RUN)
def test_what_is_not_run_is_still_in_the_pages(begin: str) -> None:
    inline = {" ".join(words) for _, words in spans()}
    assert any(shlex.join(words_of(c)).startswith(begin) for c in [*COMMANDS, *inline])


def parse(words: list[str]) -> None:
    """Parse a command's arguments by the real parser; it raises what it does not take."""
    group: Any = typer.main.get_command(app)
    if words[0] in {name for option in group.params for name in option.opts}:
        return
    if words[0] not in group.commands:
        raise ValueError(f"there is no command {words[0]}")
    with contextlib.suppress(typer.Exit):  # --help
        group.commands[words[0]].make_context(words[0], words[1:])


@parametrized(COMMANDS)
def test_the_parser_takes_it(command: str) -> None:
    program, *words = words_of(command)
    if program == "tensorflow_model_server":
        parse(["serve", *words])
    elif program == "espalier":
        parse(words)
    elif program == "make":
        check_make(words)
    elif program == "docker" and "-f" in words:
        assert (ROOT / words[words.index("-f") + 1]).is_file()


def check_make(words: list[str]) -> None:
    """The Makefile has the target, and what it calls of ours can be parsed."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if words_of(line)[:1] == ["espalier"]:
            parse(words_of(line)[1:])


def spans() -> Iterator[tuple[str, list[str]]]:
    """The place and the words of what stands in backquotes and looks like a call."""
    for page in PAGES:
        for token in tokens(page):
            for child in token.children or ():
                if child.type == "code_inline" and is_command(child.content):
                    yield f"{page.name}: `{child.content}`", words_of(child.content)


def test_commands_in_sentences_have_these_options() -> None:
    faults = []
    for place, (program, *words) in spans():
        if program == "espalier" and words:
            try:
                parse([word.strip("[]") for word in words])
            except typer.BadParameter:
                pass  # a sentence may leave out an argument, and put N for a number
            except Exception as error:
                if "requires an argument" not in str(error):  # the same, of an option
                    faults.append(f"{place}: {error}")
        elif program == "make" and words:
            check_make(words)
        elif program == "python":
            faults += [f"{place}: {fault}" for fault in script_faults(*words)]
    assert faults == []


def script_faults(name: str, *words: str) -> list[str]:
    """What is wrong with a call of a script of ours, which would run too long."""
    if not (ROOT / name).is_file():
        return [f"no file {name}"]
    text = (ROOT / name).read_text(encoding="utf-8")
    return [word for word in words if word.startswith("--") and f'"{word}"' not in text]


TEXTS = {
    "version": 2,
    "name": "reviews",
    "data": {"csv": "reviews.csv", "text": "text", "label": "label"},
    "model": {"family": "bert", "start": "tiny"},
    "push": {"to": "models/reviews"},
}
RESNET = {"family": "resnet", "start": "resnet20"}
PICTURES = {**TEXTS, "data": {"images": "pictures"}, "model": RESNET}


@each("yaml")
def test_yaml_is_a_configuration_or_a_part_of_one(block: Block, tmp_path: Path) -> None:
    part = YAML(typ="safe").load(block.text)
    if "name" in part:
        (tmp_path / "whole.yaml").write_text(block.text, encoding="utf-8")
        Config.load(tmp_path / "whole.yaml")
        return
    base = PICTURES if block.place.startswith("images.md") else TEXTS
    # A section that names other data, or another model, stands for the whole of it.
    Config(**{**base, **part})


# --- what is run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Desk:
    """The folder in which a reader of the pages would sit, with all that they speak of."""

    folder: Path
    words: dict[str, str]

    def filled(self, text: str) -> str:
        """A command or a block as it is run here."""
        for old, new in WORDS.items():
            text = text.replace(old, new.format(**self.words))
        return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def desk(
    job: Any, first_run: RunResult, kubeflow: str, tmp_path_factory: pytest.TempPathFactory
) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    version = Path(str(first_run.pushed)).name
    words = {
        "grpc": str(free_port()),
        "rest": str(free_port()),
        "kubeflow": kubeflow,
        "run": first_run.run,
        "desk": str(folder),
        "version": version,
        "later": str(int(version) + 1),
    }
    desk = Desk(folder, words)
    # Copies of what the run left: other tests need theirs as it is.
    shutil.copytree(job.folder / "runs", folder / "runs")
    (folder / "runs" / "reviews").symlink_to("small")
    for name, numbers in {
        "reviews": [version],
        "digits": [version],
        "later": [version, words["later"]],
    }.items():
        for number in numbers:
            shutil.copytree(str(first_run.pushed), folder / "models" / name / number)
    text = job.yaml.read_text(encoding="utf-8")
    (folder / "first.yaml").write_text(text, encoding="utf-8")
    text = text.replace(f"{job.folder}/models", "models/reviews")
    text = text.replace(f"{job.folder}/runs", "runs")
    (folder / "examples" / "reviews").mkdir(parents=True)
    for name in ("reviews.yaml", "examples/reviews.yaml"):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "examples" / "reviews" / "data").symlink_to(job.folder / "data")
    for name in ("reviews.csv", "new.csv"):
        (folder / name).symlink_to(job.folder / "data" / "reviews.csv")
    (folder / "pictures").symlink_to(ROOT / "examples" / "digits" / "data")
    (folder / "recipe.yaml").write_text("steps: [{quantize: {}}]\n", encoding="utf-8")
    (served,) = [b.text for b in BLOCKS["other"] if b.text.startswith("model_config_list")]
    (folder / "models.config").write_text(desk.filled(served), encoding="utf-8")
    return desk


@pytest.fixture(scope="module")
def kubeflow() -> Iterator[str]:
    """Where a server acts as Kubeflow Pipelines does."""
    found = importlib.util.spec_from_file_location(
        "espalier_tests_docs_kfp", ROOT / "tests" / "kubeflow" / "kfp_server.py"
    )
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    backend = module.Backend()
    backend.experiments["1"] = {"experiment_id": "1", "display_name": "Nightly"}
    with module.serving(backend) as address:
        yield address


@contextlib.contextmanager
def serving(desk: Desk, command: str, ports: tuple[str, str]) -> Iterator[Client]:
    """`espalier serve ...` in a process of its own, once it listens; Ctrl-C at the end."""
    flags = [f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
    words = [*words_of(desk.filled(command))[1:], *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "espalier.cli", *words], cwd=desk.folder, stdout=subprocess.DEVNULL
    )
    try:
        with Client(f"localhost:{ports[0]}", "reviews") as client:
            end = time.monotonic() + 120
            while True:
                with contextlib.suppress(ServerError):
                    if set(client.status().values()) == {"AVAILABLE"}:
                        break
                assert process.poll() is None and time.monotonic() < end, f"{command}: no answer"
                time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        assert process.wait(60) == 0


(LOGGING,) = [
    command for command in RUN if command.startswith("espalier serve") and "_log" in command
]


@pytest.fixture(scope="module")
def server(desk: Desk) -> Iterator[Client]:
    """The server that the pages' clients ask, which logs its requests."""
    with serving(desk, LOGGING, (desk.words["grpc"], desk.words["rest"])) as client:
        client.predict({"text": [f"the book was perfect, order {n}" for n in range(50)]})
        yield client


@pytest.fixture
def at_desk(desk: Desk, server: Client, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Be there; nothing opens a browser, and nobody waits for a cluster."""
    from espalier.kubeflow import watching
    from espalier.pipeline import cli

    monkeypatch.chdir(desk.folder)
    monkeypatch.setattr(watching, "time", NoPause())
    monkeypatch.setattr(cli.typer, "launch", lambda page: None)
    return desk


class NoPause:
    """The module `time`, but for its sleep."""

    monotonic, time = time.monotonic, time.time

    @staticmethod
    def sleep(seconds: float) -> None:
        """Do not."""


@parametrized(RUN)
def test_it_runs(at_desk: Desk, command: str) -> None:
    program, *words = words_of(at_desk.filled(command))
    if words[:1] == ["serve"]:
        check_serve(at_desk, command)
    elif program == "espalier":
        done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        expected = {0}
        for begin, codes in EXIT_CODES.items():
            expected = codes if command.startswith(begin) else expected
        assert done.exit_code in expected, done.output
    else:
        if not shutil.which(program):
            pytest.skip(f"no {program} here")
        line = re.sub(r"^python ", f"{sys.executable} ", at_desk.filled(command))
        subprocess.run(line, shell=True, check=True)


def check_serve(desk: Desk, command: str) -> None:
    if command != LOGGING:  # that one is the fixture `server`
        with serving(desk, command, (str(free_port()), "0")) as client:
            assert client.predict({"text": ["the pan was awful, order 1"]})["label"] == ["negative"]


@each("python")
def test_python_runs(at_desk: Desk, block: Block) -> None:
    exec(compile(at_desk.filled(block.text), block.place, "exec"), {})
