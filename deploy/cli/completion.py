"""`rollcall help` and `rollcall completion`: what the commands are, for people and for their shells. A shell asks this
program for each word, in about 0.1 s: so recipes and runs are completed as they are now, and nothing is installed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, Add
from rollcall.deploy.config.settings import COMMAND_LINE, preference_recipes, shipped_recipes
from rollcall.deploy.rundir.jobs import runs_root

ASKED = "__complete"  # rollcall __complete WORD...: what may stand in place of the last word, a line each

_BASH = """\
_rollcall() {
  local IFS=$'\\n'
  COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" \\
    -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _rollcall rollcall
"""
_ZSH = """\
#compdef rollcall
_rollcall() {
  local -a found
  found=(${(f)"$(${words[1]} __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
  if (( $#found )); then compadd -a found; else _files; fi
}
compdef _rollcall rollcall
"""
_FISH = """\
function __rollcall_complete
  set -l words (commandline -opc) (commandline -ct)
  $words[1] __complete $words[2..-1] 2>/dev/null
end
complete -c rollcall -a '(__rollcall_complete)'
"""
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_WHERE = {
    "bash": "source <(rollcall completion bash)          # in ~/.bashrc, to keep it",
    "zsh": "source <(rollcall completion zsh)           # in ~/.zshrc, after compinit",
    "fish": "rollcall completion fish | source           # in ~/.config/fish/config.fish",
}


def add_completion(add: Add, root: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds the two commands. `root` gives the parser of all commands."""
    told = add("help", lambda args: _help(root(), args.topic), "show the help of a command: the same as COMMAND --help")
    told.add_argument("topic", nargs="*", metavar="COMMAND")
    completion = add("completion", _completion, "print what makes a shell complete commands, options, recipes and runs")
    completion.add_argument("shell", choices=sorted(SHELLS), metavar="SHELL", help="bash, zsh or fish")
    completion.epilog = "; ".join(" ".join(text.partition("#")[0].split()) for text in _WHERE.values())


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands right below one, by name."""
    for action in parser._actions:  # argparse has no other way to ask for them
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def completions(root: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What may stand in place of the last of the words that follow `rollcall`."""
    *before, begun = words or [""]
    parser, rest = root, list(before)
    while rest and rest[0] in commands_of(parser):
        parser = commands_of(parser)[rest.pop(0)]
    if rest and commands_of(parser):
        return []  # after a command that there is not
    if begun.startswith("-"):
        found: Iterator[str] = (flag for action in parser._actions for flag in action.option_strings)
    elif commands_of(parser):
        found = iter(commands_of(parser))
    else:
        found = _operands(parser, rest)
    return sorted({word for word in found if word.startswith(begun)})


def _operands(parser: argparse.ArgumentParser, given: Sequence[str]) -> Iterator[str]:
    """Recipes and runs, by what the command calls its operands."""
    positional = [action for action in parser._actions if not action.option_strings]
    number = sum(not word.startswith("-") for word in given)
    action = positional[min(number, len(positional) - 1)] if positional else None
    if action is None:
        return
    if number >= len(positional) and action.nargs not in ("*", "+"):
        return
    yield from action.choices or ()
    wanted = str(action.metavar or action.dest).upper()
    if "RECIPE" in wanted:
        yield from shipped_recipes()
        yield from preference_recipes()
    elif "RUN" in wanted:
        yield from (path.parent.name for path in runs_root().glob("*/config.yaml"))
    elif "COMMAND" in wanted:
        yield from commands_of(parser)


def _help(root: argparse.ArgumentParser, topic: Sequence[str]) -> int:
    parser = root
    for depth, word in enumerate(topic):
        known = commands_of(parser)
        if word not in known:
            asked = " ".join(topic[: depth + 1])
            there = f"there are {', '.join(known)}" if known else f"{' '.join(topic[:depth])} has no commands below it"
            raise BadInput(f"no command {asked!r} ({COMMAND_LINE}); {there}")
        parser = known[word]
    parser.print_help()
    return DONE


def _completion(args: argparse.Namespace) -> int:
    print(f"# {_WHERE[args.shell]}\n{SHELLS[args.shell]}", end="")
    return DONE


def answer(root: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Prints what a shell asked for. It must never fail: a shell has nowhere to show it."""
    words = words[1:] if len(words) > 1 and words[0] == "help" else words
    for word in completions(root, words):
        print(word)
    return DONE
