"""The command ``pyramid``: finds the verb that is meant and has it run; imports nothing that a verb needs.

A verb's options are the parameters of its function and the fields of its config: see `pyramid.command`.
"""

from __future__ import annotations

import difflib
import sys

import pyramid
from pyramid.verbs import VERBS, Verb

if not hasattr(pyramid, "__version__"):
    raise SystemExit(
        "pyramid: another project's package 'pyramid' (the web framework) is installed over latent-pyramid's; "
        "make a new environment and install only latent-pyramid there"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"latent-pyramid {pyramid.__version__}")
        return 0
    verb, rest = find_verb(arguments)
    if verb is None:
        print(unknown_verb(arguments), file=sys.stderr)
        return 2
    from pyramid.command import run_verb

    return run_verb(verb, rest)


def find_verb(arguments: list[str]) -> tuple[Verb | None, list[str]]:
    """Splits arguments into a verb of one or two words and the rest."""
    for verb in VERBS:
        words = verb.name.split()
        if arguments[: len(words)] == words:
            return verb, arguments[len(words) :]
    return None, arguments


def unknown_verb(arguments: list[str]) -> str:
    """Says what could have been meant."""
    first = arguments[0]
    inner = [verb.name for verb in VERBS if verb.name.split()[0] == first]
    if inner:
        return f"pyramid {first}: say what: {', '.join(name.split()[1] for name in inner)}"
    close = difflib.get_close_matches(first, [verb.name.split()[0] for verb in VERBS], n=1)
    return f"pyramid: no verb '{first}'" + (f"; did you mean '{close[0]}'?" if close else "; see pyramid --help")


def overview() -> str:
    """Returns the text of ``pyramid --help``."""
    width = max(len(verb.name) for verb in VERBS)
    rows = [f"  {verb.name.ljust(width)}  {verb.help}" for verb in VERBS]
    return "\n".join(
        [
            "usage: pyramid VERB [--config FILE.yaml] [--dotted.option=value ...]",
            "",
            "Human video to robot policies. The verbs, in the order of the pipeline:",
            "",
            *rows,
            "",
            "pyramid VERB --help lists a verb's options. Results go to stdout (--json: one JSON object), progress to",
            "stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with items set aside, 130 interrupted.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
