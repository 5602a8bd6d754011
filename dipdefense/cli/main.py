"""The command `dipdefense`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dipdefense.cli.adapt import adapt
from dipdefense.cli.benchmarks.claims import claims
from dipdefense.cli.benchmarks.denoising import denoising_benchmarks
from dipdefense.cli.benchmarks.fits_and_defences import benchmark
from dipdefense.cli.benchmarks.restoration import restoration
from dipdefense.cli.certify import certify
from dipdefense.cli.check import check
from dipdefense.cli.diagnose import diagnose
from dipdefense.cli.evaluate import evaluate
from dipdefense.cli.ladder import ladder
from dipdefense.cli.learn_start import learn_start
from dipdefense.cli.output import accuracies_as_made, errors, manner, note, print_frame, progress_bar
from dipdefense.cli.purify import purify
from dipdefense.cli.report import report
from dipdefense.cli.restore import restoring

__all__ = ["app", "main"]

EVERYWHERE = ("--json", "--quiet")
START = """\
dipdefense cleans images by the short fit of a small network, and measures what that does against attacks.
It does not protect against an attacker who knows it.

Three things to try, with times on two CPU cores:

  dipdefense demo
      Attacks a digit classifier and defends it: accuracy before and after, and a picture.
      Half a minute to a minute. Needs no data.

  dipdefense purify photo.png purified.png
      A purified copy of your own image. 10 to 20 seconds for 256 x 256 pixels.

  dipdefense evaluate --attacks pgd --eps 0.2 --n 24
      Accuracy on scikit-learn's digits, bare and defended, with intervals.
      About half a minute. Options name other images, classifiers and attacks.

All commands: dipdefense --help. The options of one: dipdefense purify --help."""


class AnywhereGroup(TyperGroup):
    """A command whose options `--json` and `--quiet` may also follow the subcommand; alone it says what to try.

    The deprecated `evaluate --adaptive` runs `ladder`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click: move these two options to the front, and leave the rest as it is."""
        if not args and not ctx.resilient_parsing:
            typer.echo(START)
            ctx.exit(2)  # as of any command that lacks its subcommand
        end = args.index("--") if "--" in args else len(args)
        moved = [argument for argument in args[:end] if argument in EVERYWHERE]
        kept = [argument for argument in args[:end] if argument not in EVERYWHERE]
        if kept[:1] == ["evaluate"] and "--adaptive" in kept:
            errors.print("evaluate --adaptive is deprecated: its name is dipdefense ladder", soft_wrap=True)
            kept = ["ladder", *(argument for argument in kept[1:] if argument != "--adaptive")]
        return super().parse_args(ctx, moved + kept + args[end:])


app = typer.Typer(
    cls=AnywhereGroup,
    pretty_exceptions_enable=False,
    epilog="Example: dipdefense demo, then dipdefense report runs/demo -o report.html",
)
benchmark.command(epilog="Example: dipdefense benchmark restoration --data images --tasks text,jpeg")(restoration)
benchmark.command(epilog="Example: dipdefense benchmark claims --data DATA --only S2-2,S2-5 --out runs/claims")(claims)
benchmark.add_typer(denoising_benchmarks)
app.add_typer(benchmark, name="benchmark")
app.command(epilog="Example: dipdefense purify photo.png purified.png")(purify)
app.command(epilog="Example: dipdefense evaluate --attacks pgd --eps 0.2 --n 50 --gallery 4 --out runs/pgd")(evaluate)
app.command(epilog="Example: dipdefense ladder --eps 0.2 --rungs oblivious,bpda --images cheap=20,gradient=20")(ladder)
app.command(epilog="Example: dipdefense certify --sigma 0.25 --samples 100 --n 4 --purifiers dip,none")(certify)
app.command(epilog="Example: dipdefense adapt adapted.safetensors --sigma 0.25 --n 200 --purifier none --no-mirror")(
    adapt
)
app.command(epilog="Example: dipdefense learn-start start.safetensors --n 500 --outer 100")(learn_start)
app.command(epilog="Example: dipdefense check torchvision:resnet18 --shape 3,224,224")(check)
app.command(epilog="Example: dipdefense diagnose --eps 0.2 --n 16 --bare")(diagnose)
app.command(epilog="Example: dipdefense report runs/demo -o report.html")(report)
app.add_typer(restoring)


@app.callback()
def everywhere(
    json: Annotated[
        bool, typer.Option("--json", help="Print tables as JSON, one line each, and nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Purify images by an early-stopped deep image prior, and measure its effect."""
    if json and quiet:
        raise typer.BadParameter("--json and --quiet exclude each other")
    manner.set("json" if json else "quiet" if quiet else "text")


def main() -> None:
    """Run the command. An error that the user can correct is one line on stderr and exit code 1."""
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        message = " ".join(_text(error).split())
        errors.print(f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _text(error: Exception) -> str:
    """What an error says; of a file's error its name and the reason, without a number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@app.command(epilog="Example: dipdefense demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the table, records and picture.")] = Path("runs/demo"),
    full: Annotated[
        bool, typer.Option("--full", help="Add small runs of everything else that `report` shows.")
    ] = False,
) -> None:
    """Attack a digit classifier with FGSM, PGD and momentum PGD, purify, and print the table. Needs no data.

    In the last row an attacker who knows the defence uses PGD.
    """
    note("A digit classifier is trained, attacked and defended: a minute on two cores, more with --full.", err=True)
    with progress_bar("percent") as progress:
        from eval.demo import run_demo, what_it_shows  # takes seconds: within the bar

        table = run_demo(out, full=full, progress=progress, each=accuracies_as_made())
    if manner.get() == "json":
        print_frame(table)
    note(f"table: {out / 'summary.csv'}")
    if not full:
        note(f"a gallery, a comparison of defences, a ladder of attacks: dipdefense demo --full --out {out}")
    note(f"all of it in one page: dipdefense report {out} -o report.html")
    note(f"picture: {out / 'comparison.png'}\n{what_it_shows(table)}")
