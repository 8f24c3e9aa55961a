"""The command line: absl flags derived from the dataclasses of config/settings.py, and back.

Every field of every section of Config is one flag, constants aside, so a new setting
needs no change here.  Flags end up in a FlagValues of their own, never in absl's global
one: libraries imported later cannot clash with ours.

Flagfiles (core/flagfiles.py) stand for the flags that they hold.  As everywhere in
absl the last mention of a flag wins, so overrides come last:

  python -m pinsage_jax.main --flagfile=experiments/tiny.flags --epochs=3

A preset gives way to every flag that is mentioned, wherever.  Flags that are not mentioned
are those that the workdir remembers (WORKDIR/run.flags), unless the command names its data.
A few settings may come from the environment instead (`option(environment=...)`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from typing import Any

from absl import flags, logging

from pinsage_jax.api import with_remembered
from pinsage_jax.config.fields import AUTO, option
from pinsage_jax.config.settings import Config, code_settings
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.flagfiles import Argument, expand_flagfiles
from pinsage_jax.core.version import __version__
from pinsage_jax.stages import modes

MODES = tuple(modes.MODULES)
# --help shows the flags of the first level, --helpfull all.
LEVELS = ("basic", "full")
VERBOSITIES = ("debug", "info", "warning", "error")

_RUN_GROUP = "run: what to do and where"
_USAGE = """PinSage in JAX: item embeddings, related items and their evaluation from a table
of items and collections.

  python -m pinsage_jax.main --flagfile=experiments/pinterest_like.flags
  python -m pinsage_jax.main --edges=edges.parquet --items=items.parquet --workdir=runs/mine
  pinsage-jax MODE --workdir=runs/mine      as --mode=MODE; pinsage-jax MODE --help shows its flags

--flagfile=PATH reads flags from a file, one a line, and --example=NAME from a file of
the package.  The last mention of a flag wins: overrides come after --flagfile.
`auto` lets the program decide.
"""


@dataclasses.dataclass(frozen=True)
class _RunFlags:
    """The flags of a run that belong to no section."""

    mode: str = option(
        "pipeline", "pipeline: every stage that the workdir does not hold yet; or one stage.",
        choices=MODES, basic=True,
    )  # fmt: skip
    workdir: str = option("", "Folder that everything is written to.", basic=True)
    example: str = option(
        "", "A flagfile of the package, in place of --flagfile=PATH: pinterest_like, tiny, ..."
    )
    verbosity: str = option("info", "Least severe messages shown.", choices=VERBOSITIES)
    help: bool = option(False, "Show how to run the program and its basic flags.", basic=True)
    helpfull: bool = option(False, "Show all flags.", basic=True)
    version: bool = option(False, "Show the version of the program.", basic=True)


class _WholeNumber(flags.IntegerParser):
    def convert(self, argument: Any) -> int:
        try:
            return super().convert(argument)
        except (TypeError, ValueError):
            raise ValueError("a whole number is expected") from None


class _Number(flags.FloatParser):
    def convert(self, argument: Any) -> float:
        try:
            value = super().convert(argument)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError("a number is expected")
        return value


class _YesOrNo(flags.BooleanParser):
    syntactic_help = ""

    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(argument)
        except (TypeError, ValueError):
            raise ValueError("true or false is expected") from None


class _Choice(flags.EnumParser):
    # The help text lists the values already.
    syntactic_help = ""

    def parse(self, argument: str) -> str:
        if argument not in self.enum_values:
            raise ValueError(f"one of {', '.join(self.enum_values)} is expected")
        return argument


class _OrAuto(flags.ArgumentParser):
    """Takes `auto` beside what another parser takes."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        if argument == AUTO:
            return AUTO
        try:
            return self._parser.parse(argument)
        except ValueError as error:
            raise ValueError(
                f"{str(error).removesuffix(' is expected')} or auto is expected"
            ) from None


def define_flags(flag_values: flags.FlagValues, levels: tuple[str, ...] = LEVELS) -> None:
    """Defines one flag per setting of these levels, grouped by section."""
    groups = [(_RUN_GROUP, _run_fields())]
    for section in _sections():
        summary = (type(section.default).__doc__ or "").strip().splitlines()[0].rstrip(".")
        first = summary.split(maxsplit=1)[0]
        # A name such as PinSage keeps its capitals.
        started = summary if first[1:] != first[1:].lower() else summary[:1].lower() + summary[1:]
        group = f"{section.name}: {started}"
        groups.append((group, list(_settings_of(section))))
    for group, fields in groups:
        for field in fields:
            if field.metadata["level"] in levels:
                _define(flag_values, field, group)


def level_of(name: str) -> str:
    """The level of a flag: basic or full.

    Raises:
      KeyError: there is no such flag.
    """
    return {field.name: field.metadata["level"] for field in _all_fields()}[name]


def parse_flags(flag_values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses a command line, flagfiles included; argv[0] is the program.

    Returns:
      Flags that were typed before a --flagfile which sets them too, and wins.

    Raises:
      UserError: an unknown flag, a value of the wrong type, an argument that is no
        flag, or a flagfile that is missing, unreadable or includes itself.
    """
    typed = ["--help" if text in ("-h", "-?") else text for text in argv[1:]]
    subcommand = ""
    if typed and typed[0] and not typed[0].startswith("-"):
        subcommand = _mode_of(typed.pop(0))

    def takes_value(name: str) -> bool:
        return name in flag_values and not flag_values[name].boolean

    arguments = _of_environment() + expand_flagfiles(typed, takes_value, code_settings())
    if subcommand:
        for argument in arguments:
            if argument.text.startswith("--mode=") and not argument.where:
                raise UserError(f"{argument.text} does not go with '{subcommand}'; name one mode.")
        # Behind the lines of a flagfile, so that it wins.
        arguments.append(Argument(f"--mode={subcommand}"))
    flag_values.set_gnu_getopt(True)
    try:
        rest = flag_values([argv[0], *(argument.text for argument in arguments)])
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown(error.flagname, flag_values, arguments)) from None
    except flags.IllegalFlagValueError as error:
        found = re.match(r"flag --(\w+)=(.*): (.*)", str(error), re.DOTALL)
        if not found:
            raise UserError(f"{error}.") from None
        name, value, reason = found.groups()
        where = _origin(name, arguments, value)
        raise UserError(f"--{name}={value}{where}: {reason}.") from None
    except (flags.Error, ValueError) as error:
        raise UserError(f"{error}.") from None
    if len(rest) > 1:
        if rest[1] in MODES:
            raise UserError(f"'{rest[1]}' is a mode and comes first: pinsage-jax {rest[1]} ...")
        raise UserError(
            f"'{rest[1]}' is not a flag; every argument begins with two dashes, as in --seed=1."
        )
    for name in flag_values:
        value = flag_values[name].value
        if isinstance(value, str) and value.startswith("--"):
            raise UserError(f"--{name} has no value of its own; write --{name}=VALUE.")
        if isinstance(value, str) and not _is_plain(value):
            raise UserError(
                f"--{name}={value} is not UTF-8 text or holds a NUL; rename what it names."
            )
    return _overruled(arguments)


def _mode_of(word: str) -> str:
    """The mode that the first word of a command line names.

    Raises:
      UserError: there is no such mode.
    """
    if word in MODES:
        return word
    near = difflib.get_close_matches(word, MODES, n=1, cutoff=0.6)
    if near:
        raise UserError(f"'{word}' is not a mode; did you mean {near[0]}?")
    raise UserError(
        f"'{word}' is not a flag; every argument begins with two dashes, as in --seed=1, except a "
        f"mode in first place: {', '.join(MODES)}."
    )


def _of_environment() -> list[Argument]:
    """Settings that variables of the environment hold; any other mention wins."""
    return [
        Argument(f"--{field.name}={os.environ[variable]}", variable)
        for section in _sections()
        for field in _settings_of(section)
        if (variable := field.metadata["environment"]) in os.environ
    ]


def config_from_flags(flag_values: flags.FlagValues) -> Config:
    """The validated settings: those given, and else those that the workdir remembers.

    Raises:
      UserError: a value is out of range or settings do not fit together.
    """
    given = {
        name: _expand_user(flag_values[name].value)
        for name in flag_values
        if not flag_values[name].using_default_value
    }
    given = {"mode": flag_values.mode, "workdir": flag_values.workdir, **given}
    run_flags = {field.name for field in dataclasses.fields(_RunFlags)} - {"mode", "workdir"}
    settings = {name: value for name, value in given.items() if name not in run_flags}
    return with_remembered(settings, Config)


def warn_of_ignored(flag_values: flags.FlagValues, argv: list[str], overruled: list[str]) -> None:
    """Warns of flags that a --flagfile behind them sets too, or that the mode does not read."""
    for name in overruled:
        logging.warning("--%s before --flagfile has no effect; put it after.", name)
    typed = [word.lstrip("-").partition("=")[0] for word in argv[1:] if word.startswith("-")]
    modes.warn_unread(flag_values.mode, dict.fromkeys(typed))


def free_global_flags() -> None:
    """Lets libraries read the global flags, which are theirs, at their defaults."""
    flags.FLAGS.mark_as_parsed()
    flags.FLAGS["logtostderr"].value = True


def answer(flag_values: flags.FlagValues) -> str:
    """What --version, --help or --helpfull show; empty without one of them."""
    if flag_values.version:
        return f"pinsage_jax {__version__}"
    if flag_values.help and not flag_values["mode"].using_default_value:
        return mode_help(flag_values.mode)
    if flag_values.help or flag_values.helpfull:
        return help_text(flag_values, full=flag_values.helpfull)
    return ""


def mode_help(mode: str) -> str:
    """The answer to `MODE --help`: what the mode does, and the flags of what it reads."""
    summary, own, others = modes.TOPICS[mode]
    full, basic, readers = flags.FlagValues(), flags.FlagValues(), modes.readers()
    define_flags(full)
    define_flags(basic, LEVELS[:1])
    found = []
    for values, names in ((full, own), (basic, others)):
        for name in list(values):
            if mode not in readers.get(name, (mode,)):
                delattr(values, name)
        for group, members in values.flags_by_module_dict().items():
            if members and group.partition(":")[0] in names:
                found.append(values.module_help(group))
    found.append(basic.module_help(_RUN_GROUP))
    return (
        f"pinsage-jax {mode} --workdir=FOLDER ...\n\n{summary}\n"
        + "\n".join(found)
        + "\n\npinsage-jax --helpfull shows every flag."
    )


def help_text(flag_values: flags.FlagValues, full: bool) -> str:
    """The answer to --help and, with `full`, to --helpfull."""
    visible = flag_values
    if not full:
        visible = flags.FlagValues()
        define_flags(visible, LEVELS[:1])
    groups = list(visible.flags_by_module_dict())
    text = _USAGE + "\n".join(visible.module_help(group) for group in groups)
    return text + ("" if full else "\n\n--helpfull shows every flag.")


def _overruled(arguments: list[Argument]) -> list[str]:
    typed, lost = set(), []
    for argument in arguments:
        if not argument.where:
            typed.add(argument.name)
        elif argument.name in typed and argument.name not in lost:
            lost.append(argument.name)
    return lost


def _sections() -> list[dataclasses.Field]:
    return [
        field for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.default)
    ]


def _settings_of(section: dataclasses.Field) -> tuple[dataclasses.Field, ...]:
    kind: Any = type(section.default)
    return dataclasses.fields(kind)


def _all_fields() -> list[dataclasses.Field]:
    return [*_run_fields(), *(field for part in _sections() for field in _settings_of(part))]


def _run_fields() -> list[dataclasses.Field]:
    """Flags outside the sections, among them every setting that Config itself has."""
    run_flags = list(dataclasses.fields(_RunFlags))
    names = {field.name for field in [*run_flags, *_sections()]}
    return run_flags + [field for field in dataclasses.fields(Config) if field.name not in names]


def _define(flag_values: flags.FlagValues, field: dataclasses.Field, group: str) -> None:
    meta, default = field.metadata, field.default
    kind = meta.get("auto") or type(default)
    if meta.get("auto") and default is None:
        default = AUTO
    low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
    text = meta.get("help", "")
    if low is not None or high is not None:
        ends = (("at least", low), ("at most", high))
        text += f" ({', '.join(f'{word} {end}' for word, end in ends if end is not None)})"
    if choices:
        text += f" ({' | '.join(choices)})"
    # bool before int: every bool is an int as well.
    if isinstance(default, bool):
        flag: flags.Flag = flags.BooleanFlag(field.name, default, text)
        flag.parser = _YesOrNo()
    else:
        if choices:
            parser: flags.ArgumentParser = _Choice(list(choices))
        elif kind is int:
            parser = _WholeNumber()
        elif kind is float:
            parser = _Number()
        else:
            parser = flags.ArgumentParser()
        if meta.get("auto"):
            parser = _OrAuto(parser)
        flag = flags.Flag(parser, flags.ArgumentSerializer(), field.name, default, text)
    flags.DEFINE_flag(flag, flag_values, module_name=group)


def _is_plain(value: str) -> bool:
    """Whether a value can be a path, and be written down: UTF-8 without NUL."""
    # What a command line holds beyond UTF-8 arrives as lone surrogates.
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _expand_user(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) and value[:2] == "~/" else value


def _origin(name: str, arguments: list[Argument], value: str | None = None) -> str:
    """' (FILE, line N)' if a flagfile holds the flag."""
    names = (name, f"no{name}")
    for argument in arguments:
        same = value is None or argument.text.partition("=")[2] == value
        if argument.name in names and argument.where and same:
            return f" ({argument.where})"
    return ""


def _unknown(name: str, flag_values: flags.FlagValues, arguments: list[Argument]) -> str:
    known = list(flag_values)
    switches = [f"no{flag}" for flag in known if flag_values[flag].boolean]
    close = difflib.get_close_matches(name, [*known, *switches], n=1, cutoff=0.6)
    hint = f"did you mean --{close[0]}?" if close else "--helpfull lists them all."
    return f"--{name}{_origin(name, arguments)} is not a flag; {hint}"
