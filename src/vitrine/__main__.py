"""The command line: `vitrine VERB ...`. Only the verb that runs is imported, so that help comes at once."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from vitrine.errors import UsageError, VitrineError, nearest

VERBS = {
    "train": "train on a folder of pictures, or fine-tune with --init",
    "predict": "name what is in pictures",
    "explain": "show what a prediction looked at",
    "evaluate": "measure a model on data",
    "export": "write a model in another format, with the numerical proof",
    "info": "what is in a file, or the named models",
    "shards": "write data as tar shards, for sets too large for a file a picture",
}

HELP = f"""usage: vitrine VERB ... [--help]

The Vision Transformer: train it, fine-tune it, run it, see into it, trust it.

{chr(10).join(f"  {verb:<10} {what}" for verb, what in VERBS.items())}

`vitrine VERB --help` shows the options of a verb. Results go to stdout, all else to stderr.
Exit codes: 0 done, 2 usage, 65 bad data, 66 not found, 69 unavailable, 70 diverged, 73 cannot create,
74 disk, 75 stopped with its state saved, 78 configuration, 130 interrupted, 143 terminated, 1 anything else.
--debug shows tracebacks.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:  # a process of its own: what is half-written is cleared away as after Ctrl-C
        signal.signal(signal.SIGTERM, _terminated)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except VitrineError as error:
        if debug:
            raise
        print(f"vitrine: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as ended:
        print(f"vitrine: {'terminated' if ended.args else 'interrupted'}", file=sys.stderr)
        return 143 if ended.args else 130
    except BrokenPipeError:
        return 0  # the reader of stdout went away, as `| head` does: no error of ours
    except Exception as error:
        if debug:
            raise
        print(f"vitrine: {_unexpected(error)}", file=sys.stderr)
        return _code_of(error)
    finally:
        _let_go_of_broken_stdout()


def _terminated(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _let_go_of_broken_stdout() -> None:
    """Where stdout takes nothing more, keep Python from complaining of it once again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] in ("--version", "-V"):
        from vitrine import __version__

        print(__version__)
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise UsageError(f"{verb!r}: there is no such verb.{nearest(verb, VERBS)} `vitrine --help` lists them.")
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")  # tyro asks for it under this name alone
    module = importlib.import_module(f"vitrine.cli.{verb}")
    return int(module.main(rest))


def _unexpected(error: Exception) -> str:
    """One line for what no part of the program foresaw."""
    if _out_of_memory(error):
        return "there is not enough memory. Try a smaller --batch-size or --model.img-size."
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
    return f"an unexpected {type(error).__name__}: {' '.join(str(error).split())}. --debug shows where."


def _out_of_memory(error: Exception) -> bool:
    """Whether memory was lacking, in Python's words or in torch's."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _code_of(error: Exception) -> int:
    if _out_of_memory(error):
        return 69
    return 74 if isinstance(error, OSError) else 1


if __name__ == "__main__":
    sys.exit(main())
