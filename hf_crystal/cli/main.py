"""Entry point of `hf-crystal`: commands, and one line per error."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import (
    convert,
    demo,
    embed,
    evaluate,
    export,
    generate,
    index,
    info,
    plot,
    predict,
    propose,
    push,
    serve,
    stability,
    train,
)

app = typer.Typer(
    name="hf-crystal",
    help="Crystal-structure models for Hugging Face transformers.",
    epilog="Example: hf-crystal predict examples/*.cif\n\nWith tab completion: hf-crystal --install-completion",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"hf-crystal {__version__}")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[  # noqa: ARG001  handled by its callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


# name, function, line in the list of commands, end of its help
for _name, _function, _line, _example in (
    ("predict", predict.predict, "Predict properties of crystals.", predict.EXAMPLE),
    ("stability", stability.stability, "Distance from the hull of known phases.", stability.EXAMPLE),
    ("generate", generate.generate, "Generate crystals.", generate.EXAMPLE),
    ("propose", propose.propose, "Generate, group, relax, distance to the hull.", propose.EXAMPLE),
    ("embed", embed.embed, "Vectors of crystals; similar crystals.", embed.EXAMPLE),
    ("index", index.index, "Index known crystals as prototypes.", index.EXAMPLE),
    ("demo", demo.demo, "Serve the web page.", demo.EXAMPLE),
    ("serve", serve.serve, "Serve programs and assistants.", serve.EXAMPLE),
    ("convert", convert.convert, "Convert an official checkpoint.", convert.EXAMPLE),
    ("export", export.export, "Write a folder for the Hub.", export.EXAMPLE),
    ("push", push.push, "Upload a folder to the Hub.", push.EXAMPLE),
    ("info", info.info, "Versions, devices, embedded models.", info.EXAMPLE),
):
    app.command(_name, short_help=_line, epilog=_example)(_function)
app.add_typer(plot.app, name="plot", epilog=plot.ATTENTION_EXAMPLE)
train_app = typer.Typer(help="Train a model from a recipe.", rich_markup_mode=None)
train_app.command("property", short_help="Train a property model.", epilog=train.EXAMPLE)(train.train_property)
train_app.command("generator", short_help="Train a generator.", epilog=train.GENERATOR_EXAMPLE)(train.train_generator)
app.add_typer(train_app, name="train", epilog=train.EXAMPLE)
evaluate_app = typer.Typer(help="Measure a model.", rich_markup_mode=None)
evaluate_app.command("property", short_help="Errors of a property model.", epilog=evaluate.EXAMPLE)(
    evaluate.evaluate_property
)
evaluate_app.command("generation", short_help="Quality of a generator.", epilog=evaluate.GENERATION_EXAMPLE)(
    evaluate.evaluate_generation
)
app.add_typer(evaluate_app, name="evaluate", epilog=evaluate.EXAMPLE)


_LONGEST_LINE = 1000
_TERMINATED = 128 + signal.SIGTERM
# ClickException: typer carries its own copy of click from 0.2x on and names this class only through its children
_CommandLineError: type[Any] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def _fail(message: str, code: int) -> int:
    """Print the first line of a message on stderr; the rest of a library's message is advice for programmers."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["unknown error"]
    line = lines[0] if len(lines[0]) <= _LONGEST_LINE else lines[0][: _LONGEST_LINE - 1] + "…"
    print(f"hf-crystal: error: {line}", file=sys.stderr)
    return code


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after `hf-crystal`; by default those of the process.

    Returns:
        Exit code: 0 done, 1 the input was bad, 2 the command line was bad, 130 interrupted, 143 terminated.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = int(app(args=words, prog_name="hf-crystal", standalone_mode=False) or 0)
        return _fail("interrupted", code) if code == 130 else code  # typer keeps the interruption to itself
    except _CommandLineError as error:
        return _fail(error.format_message(), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except SystemExit as end:
        if end.code == _TERMINATED:
            return _fail("terminated", _TERMINATED)
        raise
    except Exception as error:  # the outermost place: whatever it is, a user gets one line
        if os.environ.get("HF_CRYSTAL_TRACEBACK") == "1":
            raise
        if isinstance(error, ValueError | TypeError | OSError | ImportError | RuntimeError):
            return _fail(str(error), 1)
        return _fail(f"{type(error).__name__}: {error} (HF_CRYSTAL_TRACEBACK=1 shows where)", 1)


def main() -> None:
    """Console script; `kill` ends it in an orderly way, so that files half written are removed."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(run())


if __name__ == "__main__":
    main()
