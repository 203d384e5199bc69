"""Turn error messages of Hydra and OmegaConf into one line that says what to type instead."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from timm.models import is_model
from yaml import MarkedYAMLError

from engine.options.arguments import OPEN, config_folder, in_shell, sweep_values, texts_by_name
from engine.options.config import CONF, ENTRIES, MODEL_SCHEMA, config_groups
from engine.options.plain import flatten
from engine.options.renamed import RENAMED
from engine.options.rules import declared, text_options
from engine.options.timm_names import OUR_NAMES
from engine.similar import nearest
from models import FAMILIES

NONE_IN_WORDS = {"none", "false", "off", "no"}
KINDS = {"Integer": "a whole number", "Float": "a number"}
GLOBAL = {"recipe", "experiment", "logger", "sweep"}  # the files of these groups set options of all groups
NEW_KEYS = ("model.kwargs.", "callbacks.")  # groups that a user fills


@dataclass(frozen=True)
class Command:
    """What the user typed.

    Attributes:
        entry: ``"train"`` or ``"eval"``.
        arguments: the options and flags.
    """

    entry: str
    arguments: Sequence[str]


def explain(error: BaseException, entry: str, arguments: Sequence[str]) -> str:
    """Return a one-line message for an error of Hydra or OmegaConf. For an unknown name it suggests similar names.

    Args:
        error: the error.
        entry: ``"train"`` or ``"eval"``.
        arguments: what the user typed.
    """
    command = Command(entry, arguments)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, command)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        where = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}"
        return f"{where} is no valid YAML: {error.problem}"
    message = f"{error}\n{error.__cause__ or ''}"
    if "Could not override ''" in message:
        return _unreadable(next(typed for typed in arguments if typed.lstrip("+").startswith("=")), command)
    if file := _file_without_package(message, command):
        return f"{file} must begin with the line '# @package _global_', as those in conf/ do"
    if match := re.search(r"Ambiguous value for argument '(.*)'\n", message):
        return _several_values(match[1], command)
    if match := re.search(r"Multiple values for (\w+)\.", message):
        return f"{match[1]} has a value already: type {match[1]}=… once, without a + in front"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", message):
        return _unknown_key(match[1] or match[2], message, command)
    if match := re.search(r"Could not find '(.+/.*)'", message):
        return _unknown_file(match[1], command)
    if match := re.search(r"In '(.+)': Could not load 'schema/model/([^']*)'", message):
        return f"conf/{match[1]}.yaml: there is no family {match[2]}: {nearest(match[2], list(FAMILIES))}"
    if match := re.search(r"Value '(.*?)' .*could not be converted to (\w+)", message):
        key, kind = _key_in(message), KINDS.get(match[2], match[2].lower())
        return f"{key}: '{match[1]}' is not {kind}{_or_null(key, match[1], command)}"
    if match := re.search(r"Value '(.*?)' .*is incompatible with type hint 'Optional\[Union", message):
        return f"{_key_in(message)}: '{match[1]}' is neither a whole number nor a word that --help lists"
    if match := re.search(r"Value '(.*?)' is not a valid bool", message):
        return f"{_key_in(message)}: '{match[1]}' is not true or false"
    if "is not a ListConfig" in message:
        return f"{_key_in(message)} takes a list of values in brackets{_as_list(message)}"
    if re.search(r"is not a subclass of \w+(Config|Options)\b|Cannot assign \w+ to Dict", message):
        group = _key_in(message).partition("=")[0]
        return f"{group} is a group of options: type {group}.NAME=…, --help lists them"
    if re.search(r"NoneType'? is not a subclass", message):
        return f"{_key_in(message).partition('[')[0]} cannot contain null"
    if match := re.search(r"Cannot convert '(?:list|dict)' to string", message):
        return f"{_key_in(message)} takes one value: put text with brackets or braces in quotes{_as_text(message)}"
    if "is not Optional" in message:
        return f"{_key_in(message)} cannot be null: leave it out, or set a value"
    if "Config group override must be a string" in message:
        return "a config group cannot be null: leave it out, or choose one of its files"
    whole = ": ".join(filter(None, (str(error), first_line(error.__cause__)))) or type(error).__name__
    return " ".join(whole.split())


def _key_in(message: str) -> str:
    key = re.search(r"full_key: (\S+)|field '(\S+)'", message)
    typed = re.search(r"Error merging override ([^\s=]+=?[^\s=]*)", message)
    return (key[1] or key[2]) if key else typed[1] if typed else "an option"


def _or_null(key: str, value: str, command: Command) -> str:
    """Say to type null, if the user typed a word for "none" and the option may be null."""
    option = declared(ENTRIES[command.entry]).get(key)
    return f": type {key}=null" if value.lower() in NONE_IN_WORDS and option and option.may_be_null else ""


def _as_text(message: str) -> str:
    typed = re.search(r"Error merging override (.*)", message)
    key, _, value = typed[1].partition("=") if typed else ("", "", "")
    return f", {in_shell(key, [value])}" if typed else ""


def _as_list(message: str) -> str:
    typed = re.search(r"Error merging override ([^\s=]+)=(\S+)", message)
    return f", such as '{typed[1]}=[{typed[2]},{typed[2]}]'" if typed else ""


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's message."""
    return str(error).split("\n", 1)[0] if error else ""


def _unreadable(argument: str, command: Command) -> str:
    """Say what to type instead of an argument that Hydra cannot parse."""
    key, equals, value = argument.partition("=")
    option = key.lstrip("+")
    if not equals or not re.fullmatch(r"~?[\w.@/$-]+", option):
        hint = argument if argument in _all_keys(command) else "OPTION"
        return f"'{argument}' cannot be read: type {hint}=VALUE, without spaces around the ="
    if re.search(OPEN, value):
        return f"{argument} cannot be read: '${{' stands for the value of another option, as in '{key}=${{name}}'"
    if option in declared(ENTRIES[command.entry]) and option not in text_options(command.entry):
        return (
            f"{argument} cannot be read: brackets must be closed, values between commas cannot be empty, and an "
            f"argument with spaces needs quotes around it, such as 'optim.betas=[0.9, 0.98]'"
        )
    if key in config_groups() and value.count("[") != value.count("]"):
        return f"{argument} cannot be read: brackets must be closed, such as 'logger=[wandb,tensorboard]'"
    if "," in value:
        several = in_shell(key, value.split(","))
        return f"{argument} cannot be read: type {in_shell(key, [value])}, or for a sweep -m {several}"
    return f"{argument} cannot be read: type {in_shell(key, [value])}"


def _unknown_file(file: str, command: Command) -> str:
    """Say what to type if a group has no such file, such as ``model/deit_smal``. A name may hold slashes, too."""
    groups = config_groups() | texts_by_name(command.arguments).keys()
    found = [each for each in groups if file.startswith(f"{each}/")]
    group = max(found, key=len, default=file.partition("/")[0])
    name = file.removeprefix(f"{group}/")
    if group == "data" and "/" in name:
        return f"data={name} is unknown: type data.root={name}, and data=folder if its images are not ImageNet's"
    if group == "model" and is_model(name):
        own = f"conf/model/{name}.yaml"
        return f"model={name} has no file {own}: type model=timm model.name={name}, or write that file"
    known = {path.stem for folder in _folders(command) for path in (folder / group).glob("*.yaml")}
    return f"{group}={name} is unknown: {nearest(name, sorted(known))}"


def _several_values(argument: str, command: Command) -> str:
    """Say what to type if an option has several values but the command is not a sweep."""
    key, _, value = argument.partition("=")
    hint = ""
    if key.lstrip("+") in text_options(command.entry) - config_groups():
        value = ",".join(map(str, sweep_values(argument)))
        argument = f"{key}={value}"
        hint = f", or type {in_shell(key, [value])} for one"
    elif key == "logger":
        hint = f", or type 'logger=[{','.join(map(str, sweep_values(argument)))}]' for a list"
    elif isinstance(_defaults(command).get(key), list):
        hint = f", or type '{key}=[{value}]' for a list"
    return f"{argument} has several values: add -m to run each of them{hint}"


def _unknown_key(key: str, message: str, command: Command) -> str:
    if full := re.search(r"full_key: (\S+)", message):
        key = full[1]
    typed = texts_by_name(command.arguments)
    if key not in typed:  # Hydra names the group that does not exist, such as wandb of wandb.mode
        key = next((name for name in typed if name.startswith(f"{key}.")), key)
    if key in RENAMED:
        return f"{key} has a new name: type {RENAMED[key]}=…"
    if key == "study":
        return (
            "a study is many trainings: type python scripts/lab.py NAME, or python scripts/lab.py to list the studies"
        )
    if key.startswith(NEW_KEYS):
        return f"'{key}' adds an entry: type +{key}=…, with a + in front"
    if file := _file_with(key, command):
        return f"{file} sets '{key}', which is no option: correct it or remove it there"
    if (leaf := key.rpartition(".")[2]) in OUR_NAMES:
        return f"there is no option '{key}': timm's {leaf} is {OUR_NAMES[leaf]} here, see docs/timm.md"
    known = sorted(_all_keys(command))
    for other in ENTRIES.keys() - {command.entry}:
        if key.partition(".")[0] in _names(other) - _names(command.entry):
            return (
                f"'{key}' is an option of {other}.py, not of {command.entry}.py: {nearest(key, known, 'leave it out')}"
            )
    return f"there is no option '{key}': {nearest(key, known)}"


def _names(entry: str) -> set[str]:
    """Return the first parts of the names of all options of ``"train"`` or ``"eval"``, and the groups of train.py."""
    return {name.partition(".")[0] for name in declared(ENTRIES[entry])} | (
        config_groups() if entry == "train" else set()
    )


def _file_with(key: str, command: Command) -> str | None:
    """Return the chosen config file that sets an option which the user did not type; None if there is none."""
    if key in texts_by_name(command.arguments):
        return None
    entry = re.compile(rf"^\s*{re.escape(key.rpartition('.')[2])}\s*:", re.MULTILINE)
    return next((name for name, _, text in _chosen_files(command) if entry.search(text)), None)


def _file_without_package(message: str, command: Command) -> str | None:
    """Return the chosen file that must set options of all groups, but does not say so; None if there is none."""
    if command.entry == "eval":  # which has none of these groups
        return None
    wrong = GLOBAL & set(re.findall(r"(?:full_key: |Key '|Could not override ')(\w+)", message))
    return next(
        (name for name, group, text in _chosen_files(command) if group in wrong and "@package" not in text), None
    )


def _chosen_files(command: Command) -> Iterator[tuple[str, str, str]]:
    """Yield the config files that the user chose with ``GROUP=NAME``: path as people know it, group, content."""
    typed = texts_by_name(command.arguments)
    for group in typed.keys() & config_groups():
        for folder in _folders(command):
            file = folder / group / f"{typed[group]}.yaml"
            if file.is_file():
                yield (str(file.relative_to(CONF.parent) if folder is CONF else file), group, file.read_text("utf-8"))


def _folders(command: Command) -> list[Path]:
    """Return the folders of config files: ``conf/`` and the user's own."""
    own = config_folder(list(command.arguments))
    return [CONF, *([own] if own is not None else [])]


def _all_keys(command: Command) -> set[str]:
    """Return every option of ``"train"`` or ``"eval"`` under the groups that the user chose, and every group."""
    keys = _defaults(command).keys()
    return keys | {key.split(".")[0] for key in keys}


def _defaults(command: Command) -> dict[str, Any]:
    """Return every option with its value under the groups that the user chose."""
    known = config_groups() | {MODEL_SCHEMA}
    chosen = [typed for typed in command.arguments if typed.partition("=")[0] in known and "," not in typed]
    job = GlobalHydra.instance()
    running, job.hydra = job.hydra, None  # the error may come from inside a running job
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                composed = hydra.compose(command.entry, overrides=chosen)
            except HydraException:  # the user chose a file from --config-dir, which is unknown here
                composed = hydra.compose(command.entry)
    finally:
        job.hydra = running
    container: Any = OmegaConf.to_container(composed)
    return flatten(container)
