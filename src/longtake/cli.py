"""The command line: reads argv, builds one configuration, calls one stage.

`longtake STAGE [CONFIG_FILE] [--dotted.key VALUE ...]`. Exit codes: 0 done; 2 an error the user can mend, told in one line on stderr;
130 and 143 stopped by Ctrl-C and SIGTERM. Any other exception is ours and keeps its traceback. stdout holds only what was asked for.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longtake import __version__
from longtake.config import benches, curate_view
from longtake.config import curate as curates
from longtake.config import plan as plans
from longtake.config import rows as row_reports
from longtake.config import score as scores
from longtake.config import serve as serves
from longtake.config import stages as configs
from longtake.config import world_serve as world_serves
from longtake.config.base import Section
from longtake.config.describe import FieldDoc, container_of, default_text, list_fields
from longtake.config.env import rank_label, wants_traceback, world_size
from longtake.config.load import clip, dump_config, find_field, load_config
from longtake.errors import ConfigError, LongtakeError, StopRequested
from longtake.observe.progress import say

TRUTH_WORDS = ("true", "false", "yes", "no", "on", "off", "1", "0")


@dataclass(frozen=True)
class Command:
    """One stage as seen from the command line."""

    name: str
    """Its words: `rl`, `world make`."""
    kind: type[Section]
    module: str
    """Has `run(config) -> None`."""
    argument: str | None = None
    """The field that a bare argument sets; None: a bare argument is the configuration file."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Short forms of options."""
    many_processes: bool = False
    """Whether a launcher (torchrun) may start several of it."""

    @property
    def summary(self) -> str:
        return " ".join((self.kind.__doc__ or "").split()).partition("`: ")[2]


MODEL_ALIAS = {"model": "model.path"}
SCORE_ALIASES = MODEL_ALIAS | {"ring": "parallel.ring"}
PLAN_ALIASES = {
    "json": "as_json",
    "device": "hardware.device",
    "gpus": "hardware.gpus_per_node",
    "nodes": "hardware.nodes",
    "gpu-memory": "hardware.gpu_memory_gib",
    "host-memory": "hardware.host_memory_gib",
}
COMMANDS = (
    Command("quickstart", configs.QuickstartConfig, "longtake.stages.quickstart"),
    Command("ask", configs.AskConfig, "longtake.stages.ask", "question", MODEL_ALIAS),
    Command("world make", configs.WorldConfig, "longtake.stages.world"),
    Command("world serve", world_serves.WorldServeConfig, "longtake.stages.world_serve", "world"),
    Command("tiny train", configs.TinyConfig, "longtake.stages.tiny"),
    Command("sft", configs.SftConfig, "longtake.stages.sft", None, MODEL_ALIAS, many_processes=True),
    Command("rl", configs.RlConfig, "longtake.stages.rl", None, MODEL_ALIAS, many_processes=True),
    Command("evaluate", configs.EvaluateConfig, "longtake.stages.evaluate", None, MODEL_ALIAS, many_processes=True),
    Command("encode", configs.EncodeConfig, "longtake.stages.encode", None, MODEL_ALIAS, many_processes=True),
    Command("score", scores.ScoreConfig, "longtake.stages.score", None, SCORE_ALIASES, many_processes=True),
    Command("plan", plans.PlanConfig, "longtake.stages.plan", None, MODEL_ALIAS | PLAN_ALIASES, many_processes=True),
    Command("export", configs.ExportConfig, "longtake.stages.export", "run"),
    Command("serve", serves.ServeConfig, "longtake.stages.serve", "model"),
    Command("report", configs.ReportConfig, "longtake.stages.report", "run"),
    Command("rows", row_reports.RowsConfig, "longtake.stages.rows", "rows"),
    Command("curate run", curates.CurateConfig, "longtake.stages.curate"),
    Command("curate view", curate_view.CurateViewConfig, "longtake.stages.curate_view", "run"),
    Command("bench decode", configs.BenchDecodeConfig, "longtake.stages.bench", None, {"json": "as_json"}),
    Command("bench update", benches.BenchUpdateConfig, "longtake.stages.bench_update", None, {"json": "as_json"}),
    Command("bench memory", benches.BenchMemoryConfig, "longtake.stages.bench_memory", None, {"json": "as_json"}),
    Command("bench encode", benches.BenchEncodeConfig, "longtake.stages.bench_encode", None, {"json": "as_json"}),
    Command("bench rollout", benches.BenchRolloutConfig, "longtake.stages.bench_rollout", None, {"json": "as_json"}),
    Command("bench step", benches.BenchStepConfig, "longtake.stages.bench_step", None, {"json": "as_json"}),
)


@dataclass
class Arguments:
    """What stands behind the stage's name."""

    config_file: Path | None = None
    overrides: list[tuple[str, str]] = field(default_factory=list)
    help: bool = False
    print_config: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        return dispatch(list(sys.argv[1:] if argv is None else argv))
    except LongtakeError as error:
        if wants_traceback():
            raise
        say(f"{rank_label()}error: {error}", "red")
        return error.exit_code
    except StopRequested as stop:
        say(f"stopped: {stop}", "yellow")
        return stop.exit_code
    except KeyboardInterrupt:
        say("stopped at once: nothing after the last checkpoint was saved", "yellow")
        return 130


def dispatch(args: list[str]) -> int:
    """Find the stage, then print what was asked for or run it. Raises LongtakeError and whatever the stage raises."""
    if args in (["--version"], ["-V"]):
        print(f"longtake {__version__}")
        return 0
    if not args or args[0] in ("-h", "--help"):
        print_overview(COMMANDS)
        return 0 if args else 2
    if group := command_group(args):
        print_overview(group)
        return 0 if args[1:] else 2
    command, rest = find_command(args)
    arguments = parse_arguments(command, rest)
    if arguments.help:
        print_help(command)
        return 0
    config = load_config(command.kind, arguments.config_file, arguments.overrides)
    if arguments.print_config:
        print(dump_config(config), end="")
        return 0
    run_stage(command, config)
    return 0


def command_group(args: Sequence[str]) -> list[Command]:
    """The commands of `longtake world` or `longtake world --help`; empty for anything else."""
    asked = len(args) == 1 or list(args[1:]) in (["-h"], ["--help"])
    return [command for command in COMMANDS if asked and command.name.startswith(f"{args[0]} ")]


def find_command(args: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that `args` begin with, and what follows. Raises ConfigError with the nearest one."""
    for command in COMMANDS:
        words = command.name.split()
        if list(args[: len(words)]) == words:
            return command, list(args[len(words) :])
    names = [command.name for command in COMMANDS]
    near = [name for tried in (" ".join(args[:2]), args[0]) for name in difflib.get_close_matches(tried, names, n=1, cutoff=0.4)]
    raise ConfigError(
        f"unknown stage {clip(args[0])}",
        rule=f"the stages are {', '.join(names)}",
        remedy=f"did you mean longtake {near[0]}? If not, see longtake --help" if near else "see longtake --help",
    )


def parse_arguments(command: Command, args: list[str]) -> Arguments:
    """Read bare arguments and options. Raises ConfigError for what is not of the form in this module's docstring."""
    parsed, bare, rest = Arguments(), [], list(args)
    while rest:
        token = rest.pop(0)
        if token in ("-h", "--help"):
            parsed.help = True
        elif token == "--print-config":
            parsed.print_config = True
        elif token == "--":
            bare += rest
            rest = []
        elif token.startswith("--"):
            name, equals, text = token[2:].partition("=")
            text = text if equals else take_value(command, name, rest)
            if name == "config":
                parsed.config_file = Path(text)
            else:
                parsed.overrides.append((command.aliases.get(name, name), text))
        elif token.startswith("-") and len(token) > 1:
            raise ConfigError(f"option {clip(token)}", rule="options begin with two dashes", remedy=f"see longtake {command.name} --help")
        else:
            bare.append(token)
    set_bare(command, parsed, bare)
    return parsed


def take_value(command: Command, name: str, rest: list[str]) -> str:
    """The value of option `--name`, taken from the front of `rest`. A bare switch means true. Raises ConfigError when there is none."""
    if is_switch(command, name):
        return rest.pop(0) if rest and rest[0].lower() in TRUTH_WORDS else "true"
    if rest and not rest[0].startswith("--"):
        first = rest.pop(0)
        return ",".join([first, *numbers_in_front(rest)]) if first.isdecimal() and is_list(command, name) else first
    raise ConfigError(
        f"--{name} without a value", rule="an option is followed by its value", remedy=f"write --{name} VALUE or --{name}=VALUE"
    )


def numbers_in_front(rest: list[str]) -> list[str]:
    """`--frames 8 16 32` is `--frames 8,16,32`: the numbers that follow the first, taken off `rest`."""
    found: list[str] = []
    while rest and rest[0].isdecimal():
        found.append(rest.pop(0))
    return found


def is_list(command: Command, name: str) -> bool:
    """True for a known field that holds several values."""
    try:
        return container_of(find_field(command.kind, command.aliases.get(name, name)).annotation) is tuple
    except ConfigError:
        return False


def is_switch(command: Command, name: str) -> bool:
    """True for a known field that is true or false; an unknown name is reported later, with everything else."""
    try:
        return name != "config" and find_field(command.kind, command.aliases.get(name, name)).annotation is bool
    except ConfigError:
        return False


def set_bare(command: Command, parsed: Arguments, bare: list[str]) -> None:
    """One bare argument at most: the command's own field, or the configuration file."""
    if not bare:
        return
    if len(bare) > 1 or (command.argument is None and parsed.config_file is not None):
        meaning = command.argument or "configuration file"
        raise ConfigError(
            f"bare arguments {', '.join(clip(text) for text in bare)}",
            rule=f"longtake {command.name} takes one, the {meaning}",
            remedy="put quotes around text with spaces, and -- in front of options' names",
        )
    if command.argument is None:
        parsed.config_file = Path(bare[0])
    else:
        parsed.overrides.append((command.argument, bare[0]))


def run_stage(command: Command, config: Section) -> None:
    """Import the stage and run it. Raises ConfigError when a launcher started several processes."""
    if world_size() > 1 and not command.many_processes:
        raise ConfigError(
            f"WORLD_SIZE = {world_size()}: a launcher started several processes",
            rule=f"longtake {command.name} runs in one process in this version",
            remedy="start longtake without torchrun",
        )
    # The one late import of the package: a stage brings torch and transformers, seconds that --help and a typing error must not cost.
    importlib.import_module(command.module).run(config)


def print_overview(commands: Sequence[Command]) -> None:
    """All stages, one line each."""
    console = Console(highlight=False)
    console.print(Text.assemble(("longtake", "bold"), f" {__version__}: reinforcement learning for models that reason over long videos"))
    console.print(Text("\nusage: longtake STAGE [CONFIG_FILE] [--dotted.key VALUE ...]\n"))
    table = Table.grid(padding=(0, 2))
    for command in commands:
        table.add_row(Text(f"  {command.name}", "bold cyan"), Text(command.summary))
    console.print(table)
    console.print(Text("\nlongtake STAGE --help lists every field; --print-config shows what a run would use; longtake --version"))


def print_help(command: Command) -> None:
    """Every field of a stage: option, type, default, doc."""
    console = Console(highlight=False)
    bare = "[CONFIG_FILE]" if command.argument is None else f"{command.argument.upper()} [--config FILE]"
    console.print(Text.assemble("usage: ", (f"longtake {command.name}", "bold"), f" {bare} [--option VALUE ...] [--print-config]"))
    console.print(Text(f"\n{command.summary}\n"))
    console.print(Text("CONFIG_FILE is TOML or JSON (a run's config.json too); options win over it. Lists: a,b,c. No value: none.\n"))
    short = {long: name for name, long in command.aliases.items()}
    for one in list_fields(command.kind):
        print_field(console, one, f" (or --{short[one.key]})" if one.key in short else "")


def print_field(console: Console, one: FieldDoc, short: str) -> None:
    """Two lines for a field; a section is a heading for the fields that follow."""
    if one.section is not None:
        off = " (off unless one of its fields is given)" if one.default is None else ""
        console.print(Padding(Text.assemble((one.key, "bold"), f": {one.doc}{off}"), (1, 0, 0, 0), expand=False))
        return
    head = Text.assemble("  ", (one.option, "cyan"), short, "  ", (one.type_text, "dim"), f"  [{default_text(one.default)}]")
    console.print(head)
    if one.doc:
        console.print(Padding(Text(one.doc), (0, 0, 0, 6), expand=False))
