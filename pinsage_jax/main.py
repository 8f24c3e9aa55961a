"""The program: flags to settings, one run per workdir, and the stage that --mode names.

Exit codes, the same of all processes of one run: 0 done, 1 a bug of ours (with its
traceback), 2 something to correct (one sentence on stderr), 130 SIGINT, 143 SIGTERM.
"""

from __future__ import annotations

import dataclasses
import os
import sys

from absl import flags

from pinsage_jax import cli
from pinsage_jax.config.settings import Config
from pinsage_jax.core import costs, logging_setup, signals
from pinsage_jax.core.errors import UserError, printable_message
from pinsage_jax.cpu import allocator, program_cache
from pinsage_jax.distributed import process_group
from pinsage_jax.stages import modes


def main(argv: list[str]) -> int:
    """Runs one command line, argv[0] being the program; returns the exit code."""
    try:
        flag_values = flags.FlagValues()
        cli.define_flags(flag_values)
        overruled = cli.parse_flags(flag_values, argv)
        if answer := cli.answer(flag_values):
            print(answer)
            return 0
        cli.free_global_flags()
        logging_setup.set_up(flag_values.verbosity)
        config = cli.config_from_flags(flag_values)
        cli.warn_of_ignored(flag_values, argv, overruled)
        modes.require_extras(config)
        config = modes.in_its_workdir(config)
        identity = dataclasses.asdict(config)
        with modes.opened(config), process_group.joined(config.distributed, identity) as group:
            return _run_stage(config, group, argv)
    except UserError as error:
        print(f"error: {printable_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run_stage(config: Config, group: process_group.ProcessGroup, argv: list[str]) -> int:
    allocator.configure(keep_freed=config.mode in modes.WITH_STEPS)
    program_cache.keep_programs()
    signals.install()
    try:
        # NumPy and JAX take seconds to load: only now, so that wrong flags are reported at once.
        from pinsage_jax.core import files

        if process_group.is_rank0() and not modes.only_reads(config):
            files.remove_temporary_files(config.workdir)
        with group.stopping_together(), costs.commanded(costs.as_command(argv)):
            signals.raise_if_stopped()
            modes.stage(config.mode)(config)
            modes.say_next(config, done=not (group.index or signals.exit_code()))
        sys.stdout.flush()
        return group.barrier_exit(signals.exit_code())
    finally:
        signals.restore()


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
