"""Write the two reference pages out of the code: `python docs/generate.py`.

A test fails when they are out of date.
"""

import typing
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from espalier import Config
from espalier.cli import app

FOLDER = Path(__file__).parent


def configuration() -> str:
    """The page of every key, section by section."""
    lines = [
        "# Every key of the configuration",
        "",
        "Made by `python docs/generate.py` from the models in `pipeline/config.py`,",
        "`trainer/settings.py` and the families' `Settings`. Paths are relative to the current",
        "directory. `espalier schema` prints the same as JSON Schema, for editors. `${NAME}` in a",
        "value is read from the environment: [how](own-data.md#values-from-the-environment).",
        "",
        "## Top level",
        "",
    ]
    lines += _table(Config, skip_sections=True)
    for name, field in Config.model_fields.items():
        for model in _models(field.annotation):
            family = model.model_fields.get("family")
            title = f"{name}: with family: {family.default}" if family else f"{name}:"
            lines += ["", f"## `{title}`", "", *_table(model)]
            lines += _sections(name, model)
    return "\n".join(lines) + "\n"


def _sections(name: str, model: type[BaseModel]) -> list[str]:
    """The sections inside a section, and those inside them."""
    lines = []
    for inner, part in model.model_fields.items():
        for section in _models(part.annotation):
            if section.__name__ != "SplitPaths":  # told where it is used
                lines += ["", f"## `{name}.{inner}:`", "", *_table(section)]
                lines += _sections(f"{name}.{inner}", section)
    return lines


def commands() -> str:
    """The page of every command, as `--help` prints it."""
    group: Any = typer.main.get_command(app)
    lines = ["# Every command", "", "Made by `python docs/generate.py` from `--help`."]
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=f"espalier {name}")
        lines += ["", f"## espalier {name}", "", (command.help or "").strip(), ""]
        if command.params:
            lines += ["| argument or option | what it does |", "|---|---|"]
        for parameter in command.params:
            record = parameter.get_help_record(context)
            words = record or (parameter.human_readable_name, getattr(parameter, "help", "") or "")
            cells = " | ".join(_cell(word) for word in (f"`{words[0]}`", words[1]))
            lines.append(f"| {cells} |")
    return "\n".join(lines) + "\n"


def _models(annotation: Any) -> list[type[BaseModel]]:
    found = [annotation, *typing.get_args(annotation)]
    return [one for one in found if isinstance(one, type) and issubclass(one, BaseModel)]


def _table(model: type[BaseModel], skip_sections: bool = False) -> list[str]:
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if skip_sections and _models(field.annotation):
            continue
        default = (
            "required"
            if field.is_required()
            else f"`{_plain(field.get_default(call_default_factory=True))}`"
        )
        lines.append(f"| `{field.alias or name}` | {default} | {_cell(field.description or '')} |")
    return lines


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, BaseModel):
        return "none of it"
    return str(value).replace("'", "") if isinstance(value, list | dict) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    (FOLDER / "configuration.md").write_text(configuration(), encoding="utf-8")
    (FOLDER / "commands.md").write_text(commands(), encoding="utf-8")
