"""The program in this process: its flags, the settings that they give, and its exit code."""

from __future__ import annotations

from absl import flags

from pinsage_jax import cli, main
from pinsage_jax.config.settings import Config


def defined() -> flags.FlagValues:
    """All flags, none of them given."""
    flag_values = flags.FlagValues()
    cli.define_flags(flag_values)
    return flag_values


def parsed(*arguments: str) -> Config:
    """The settings of a command line."""
    flag_values = defined()
    cli.parse_flags(flag_values, ["program", *arguments])
    return cli.config_from_flags(flag_values)


def run(*arguments: str) -> int:
    """Runs the program; its exit code."""
    return main.main(["program", *arguments])
