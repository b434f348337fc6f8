"""The command line: one sub-command per phase. Every error ends in one message and its exit code.

A command's module is imported when it is called, and what is heavy once its options are read, so that `--help` and a
misspelt option are answered at once.
"""

import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from redheart.core.cache import is_writable, temporary_private_folder
from redheart.core.errors import BadInput, DoesNotFit, RedHeartError
from redheart.core.progress import silence_stdout

COMMANDS = {
    "run": ("study", "the whole study: all phases below, or what is left of them"),
    "init": ("settings", "write a configuration file with every setting explained"),
    "config": ("settings", "what a configuration comes to, and where every value is from"),
    "model": ("planning", "the parameter ledger of a preset"),
    "doctor": ("planning", "is this machine fit for a run"),
    "plan": ("planning", "does a run fit into memory; needs no GPU"),
    "prepare": ("study", "validate, de-duplicate and split a file of records"),
    "sweep": ("study", "find the learning rate"),
    "train": ("study", "the main run, with snapshots; goes on where it stopped"),
    "trial": ("study", "one trial of the sweep"),
    "status": ("runs", "where a run stands: epoch, loss, speed, memory, time left"),
    "sweet-spot": ("runs", "the best epochs of every module group"),
    "crossover": ("runs", "assemble the chosen model and compare it"),
    "evaluate": ("runs", "test split or another labelled file, beside baselines"),
    "calibrate": ("runs", "does the model's confidence mean what it says, and can it be mended"),
    "predict": ("prediction", "emotions of a text, or of a file of texts"),
    "demo": ("prediction", "a page on this machine to try a model"),
    "export": ("prediction", "the model as a folder of its own, with a model card"),
    "ratings": ("people", "do predictions follow what people say: Spearman by subject"),
    "eeg": ("people", "frontal alpha asymmetry of EEG recordings, a table for `ratings`"),
    "report": ("runs", "write the report from the files of a run"),
    "snapshots": ("snapshots", "list, verify, consolidate, compress, prune and import what runs keep"),
}
"""Module of this package and summary by name; the function is called as the command."""


def help_text(program: str, summaries: dict[str, str], *, title: str = "") -> str:
    """What `--help` of a program with sub-commands prints."""
    width = max(map(len, summaries)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, summary in summaries.items()]
    end = f"`{program} COMMAND --help` lists a command's options."
    return "\n".join([f"usage: {program} COMMAND [OPTIONS]", "", *([title, ""] if title else []), *lines, "", end])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `redheart`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Python has None for an output that was closed before its start, as by `>&-`; nothing is then to be seen.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    set_environment()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What its encoding lacks is written as an escape: a Korean title in ASCII, a file's name that is no UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    # As Ctrl-C does: outside of training there is nothing to finish, and the next start goes on after the last file.
    from redheart.train.interrupt import raise_interrupt

    signal.signal(signal.SIGTERM, raise_interrupt)
    # A shell lets what it starts in the background ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, raise_interrupt)
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            summaries = {name: summary for name, (_, summary) in COMMANDS.items()}
            title = "Train a 730-million-parameter model, all parameters, on an 8 GB card."
            print(help_text("redheart", summaries, title=title))
        elif arguments[0] == "--version":
            from redheart import __version__

            print(__version__)
        elif arguments[0] in COMMANDS:
            module = import_module(f"redheart.cli.{COMMANDS[arguments[0]][0]}")
            getattr(module, arguments[0].replace("-", "_"))(arguments[1:])
        else:
            near = get_close_matches(arguments[0], COMMANDS, n=1)
            raise BadInput(
                "unknown command",
                got=arguments[0],
                expected=", ".join(COMMANDS),
                hint=f"did you mean `{near[0]}`?" if near else None,
            )
        # What stands in the buffer may not fit on a full disk.
        sys.stdout.flush()
        # At its end Python looks through all that libraries left for cycles, half a second after a plan.
        gc.freeze()
    except RedHeartError as error:
        _end(None if error.is_said else error, error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted; run the same command again to go on", 75)
    except BrokenPipeError:
        # Whoever read the output wants no more of it, as `| head` does.
        _silence_stdout()
        sys.exit(141)
    except RuntimeError as error:
        # torch's own class, which most commands never load.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        hint = "free the device of other programs, or hide it: CUDA_VISIBLE_DEVICES= and the same command"
        _end(DoesNotFit("out of device memory", where=f"redheart {arguments[0]}", hint=hint), DoesNotFit.exit_code)
    except OSError as error:
        # The system refused to read or write something; a library's own message stands in for a missing number.
        _end(f"the system refused: {error}", 74)


def _end(message: object | None, code: int) -> None:
    if message is not None:
        print(f"error: {message}", file=sys.stderr, flush=True)
    _silence_stdout()
    sys.exit(code)


def _silence_stdout() -> None:
    """Python flushes what is left at its end, and a full disk or closed pipe would print a traceback there."""
    try:
        sys.stdout.flush()
    except OSError:
        silence_stdout()


def set_environment() -> None:
    """What must be set before torch and the other libraries are loaded; what is set already stays."""
    # What libraries print that a user can do nothing about.
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    # OpenMP's threads spin at every barrier, by default far longer than a barrier of ours takes. With two busy
    # processes on two cores a step of `small` took 23 s; with a short spin it takes 1.7 s there, and 0.47 s alone as
    # before (0.77 s if they never spin).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # The same bits at every call: see train/engine.py. cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Folders for what libraries keep of a user, where the user has none: they would end, or warn at every start.
    with suppress(OSError):
        if os.path.expanduser("~") == "~":
            os.environ["HOME"] = str(temporary_private_folder())
        settings = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
        if not is_writable(settings / "matplotlib"):
            os.environ.setdefault("MPLCONFIGDIR", str(temporary_private_folder() / "matplotlib"))
