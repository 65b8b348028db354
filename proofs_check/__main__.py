"""The command: ``proofs-check`` and ``python -m proofs_check``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .bench.command import add_parser as add_bench
from .certificate import CERTIFIED, Certificate, CertificateError, certify
from .claim import Claim, Verdict
from .claims import CLAIMS, foreign, home, select
from .counterexample import save_all
from .descent_command import add_descent
from .inputs import InputError, TokenInput, default_image, from_image, from_tokens
from .model_commands import add_parsers
from .plugins import SWITCH, all_claims, left_out, of, problems
from .replay_command import add_parser as add_replay
from .run import PROFILES, Campaign, run_claim
from .session import result, run_all, summary_line
from .table import fast_weights_table, layers_table

__all__ = ["main"]

REPORT = Path("proofs-report.html")
CAVEAT = "“holds on N cases” is numerical agreement on drawn and real inputs. It is not a proof."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 all hold, 1 something fails or is vacuous, 2 usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments = ["run", *arguments, "--html", str(REPORT)] if "--html" not in arguments else ["run", *arguments]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of another encoding is no reason to stop
    options = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="proofs-check-") as scratch:
            # Hypothesis would leave a folder where the command is called; worker processes read this too.
            os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", scratch)
            with left_out() if getattr(options, "no_plugins", False) else contextlib.nullcontext():
                return options.command(options)
    except (InputError, _Usage) as problem:
        print(f"proofs-check: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has seen enough
        return 0
    except KeyboardInterrupt:
        print("proofs-check: stopped.", file=sys.stderr)
        return 130


class _Usage(ValueError):
    """A wrong call."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proofs-check",
        description="Check that attention layers are the optimisation steps they are said to be. Without arguments: run"
        f" every claim, profile quick, and write {REPORT}.",
        epilog=CAVEAT,
    )
    parser.add_argument("--version", action="version", version=f"proofs-check {_version()}")
    commands = parser.add_subparsers(
        required=True, metavar="run | list | show | certify | models | checkpoint | bench | replay"
    )

    run = commands.add_parser("run", help="run claims", description="Run claims.", epilog=CAVEAT)
    run.add_argument("names", nargs="*", metavar="STEM|CLAIM", help="stems (mssa), claims, or beginnings (mssa.sign)")
    run.add_argument("--profile", choices=PROFILES, default="quick", help="how many drawn cases a claim")
    run.add_argument("--cases", type=_count, metavar="N", help="drawn cases a claim, in place of the profile's")
    run.add_argument("--seed", type=_seed, default=0, metavar="N", help="of everything that is drawn (default 0)")
    source = run.add_mutually_exclusive_group()
    source.add_argument("--image", metavar="FILE", help="a photograph whose patches are the real tokens")
    source.add_argument("--tokens", metavar="FILE", help="real tokens (N, d): .npy, .npz or .safetensors")
    run.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="what the layers compute in")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts as JSON")
    run.add_argument(
        "--html", type=Path, metavar="FILE", help="write the report, counterexamples in a folder beside it"
    )
    run.add_argument(
        "--counterexamples", type=Path, metavar="DIR", help="save every counterexample there: proofs-check replay DIR"
    )
    run.add_argument("--no-mutants", action="store_true", help="do not try the wrong versions")
    run.add_argument("--fail-fast", action="store_true", help="stop at the first claim that fails or is vacuous")
    run.add_argument(
        "--jobs", type=_count, default=None, metavar="N", help="processes (default: 2, or the cores if fewer)"
    )
    run.set_defaults(command=_run)

    run.add_argument(
        "--certify", action="store_true", help="also certify what can be, in ball arithmetic (needs python-flint)"
    )

    proven = commands.add_parser(
        "certify",
        help="a claim's identity on one input, rigorously",
        description="Enclose both sides of a claim's identity in ball arithmetic on a few tokens of an input: true to"
        " within 10^−digits there, rigorously. Needs python-flint (the extra 'certificate').",
    )
    proven.add_argument("names", nargs="*", metavar="STEM|CLAIM", help=f"of {', '.join(CERTIFIED)}; default: all")
    source = proven.add_mutually_exclusive_group()
    source.add_argument("--image", metavar="FILE", help="a photograph whose patches are the tokens")
    source.add_argument("--tokens", metavar="FILE", help="tokens (N, d): .npy, .npz or .safetensors")
    proven.add_argument("--count", type=_count, default=8, metavar="N", help="tokens, evenly spaced (default 8)")
    proven.add_argument("--digits", type=_count, default=30, metavar="D", help="of agreement (default 30)")
    proven.add_argument("--seed", type=_seed, default=0, metavar="N", help="of bases, queries and dictionaries")
    proven.set_defaults(command=_certify)

    listing = commands.add_parser("list", help="list the claims, or the layers as a table")
    form = listing.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table of layers, in Markdown")
    form.add_argument("--fast-weights", action="store_true", help="efficient attention as fast weights, in Markdown")
    form.add_argument("--json", action="store_true", help="the claims as JSON")
    listing.set_defaults(command=_list)

    show = commands.add_parser("show", help="a claim's sentence, equation, source and code, then its verdict")
    show.add_argument("names", nargs="+", metavar="STEM|CLAIM")
    show.set_defaults(command=_show)

    add_parsers(commands, _write)
    add_bench(commands, _write)
    add_descent(commands, _write)

    again = add_replay(commands)
    for command in (run, proven, listing, show, again):
        command.add_argument(
            "--no-plugins", action="store_true", help=f"leave claims of other packages out (or set {SWITCH}=1)"
        )
    return parser


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {number}")
    return number


def _seed(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, but is {number}")
    return number


def _run(options: argparse.Namespace) -> int:
    claims = _select(options.names)
    if options.counterexamples is not None:
        try:
            options.counterexamples.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise _Usage(
                f"--counterexamples: {options.counterexamples} is no folder and cannot be made one ({problem.strerror})."
            ) from None
    if options.json is not None and options.html is not None and options.json.resolve() == options.html.resolve():
        raise _Usage(f"--json and --html name the same file, {options.json}; give two.")
    for path in (options.json, options.html):
        if path is not None and not path.resolve().parent.is_dir():
            raise _Usage(f"{path}: the folder {path.parent} does not exist.")
        if path is not None and path.is_dir():
            raise _Usage(f"{path} is a folder; give a file name.")
    if options.certify:
        _certificate("coding_rate.gradient", None, 1, 1, 0)  # a missing extra is told before the run, not after it
    campaign = Campaign(
        options.cases or PROFILES[options.profile],
        options.seed,
        options.dtype,
        _source(options),
        not options.no_mutants,
    )
    print(f"input: {campaign.source.name}: {campaign.source.note}" if campaign.source else "input: drawn cases")
    verdicts, seconds = run_all(claims, campaign, options.jobs, options.fail_fast)
    if options.certify:
        for verdict in verdicts:
            if verdict.id in CERTIFIED:
                verdict.certificate = str(_certificate(verdict.id, campaign.source, 8, 30, campaign.seed))
                print(verdict.certificate)
    run = result(verdicts, campaign, options.profile, seconds, _version())
    print(summary_line(run))
    for verdict in verdicts:
        if not verdict.sound:
            print(f"\n{verdict.id} {verdict.status}: {verdict.reason}")
            if verdict.counterexample:
                print("\n".join("    " + line for line in verdict.counterexample.splitlines()))
    print(CAVEAT)
    if options.json is not None:
        _write(options.json, json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        print(f"verdicts: {options.json}")
    if options.counterexamples is not None:
        saved = _saved(verdicts, options.counterexamples)
        print(f"counterexamples: {saved} in {options.counterexamples} (proofs-check replay {options.counterexamples})")
    if options.html is not None:
        from .report import counterexamples_beside, write

        folder = counterexamples_beside(options.html)
        saved = _saved(verdicts, folder)
        known = all_claims() if foreign(options.names) else CLAIMS
        write(options.html, run, verdicts, {claim.id: claim for claim in known}, campaign.source)
        print(f"report: {options.html} (open it in a browser)" + (f"; counterexamples: {folder}/" if saved else ""))
    return 0 if all(verdict.sound for verdict in verdicts) else 1


def _saved(verdicts: list[Verdict], folder: Path) -> int:
    try:
        return save_all(verdicts, folder)
    except OSError as problem:
        raise _Usage(f"{folder}: counterexamples cannot be written there ({problem.strerror}).") from None


def _certify(options: argparse.Namespace) -> int:
    chosen = [claim.id for claim in _select(options.names or [*CERTIFIED]) if claim.id in CERTIFIED]
    if not chosen:
        raise _Usage(f"none of these claims has a certificate; these have: {', '.join(CERTIFIED)}.")
    source, sound = _source(options), True
    print(f"input: {source.name}: {source.note}")
    for name in chosen:
        certificate = _certificate(name, source, options.count, options.digits, options.seed)
        print(certificate)
        sound = sound and certificate.holds
    return 0 if sound else 1


def _certificate(claim: str, source: TokenInput | None, count: int, digits: int, seed: int) -> Certificate:
    try:
        return certify(claim, source, count=count, digits=digits, seed=seed)
    except CertificateError as problem:
        raise _Usage(str(problem)) from None


def _source(options: argparse.Namespace) -> TokenInput:
    if options.tokens is not None:
        return from_tokens(options.tokens)
    return from_image(options.image if options.image is not None else default_image())


def _select(names: list[str]) -> tuple[Claim, ...]:
    for line in problems() if foreign(names) else ():
        print(f"proofs-check: {line}", file=sys.stderr)
    try:
        return select(names)
    except ValueError as problem:
        raise _Usage(str(problem)) from None


def _list(options: argparse.Namespace) -> int:
    if options.markdown:
        print(layers_table())
    elif options.fast_weights:
        print(fast_weights_table())
    elif options.json:
        keys = ("id", "stem", "kind", "statement", "equation", "source", "frozen", "correction", "code")
        rows = [
            {
                **{key: getattr(claim, key) for key in keys},
                "mutants": [mutant.name for mutant in claim.mutants],
                "package": _package(claim),
            }
            for claim in _select([])
        ]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        claims = _select([])
        width = max(len(claim.id) for claim in claims)
        for claim in claims:
            print(f"{claim.id:{width}}  {claim.kind:10}  {claim.statement}")
    return 0


def _show(options: argparse.Namespace) -> int:
    sound = True
    for claim in _select(options.names):
        print(f"{claim.id}  ({claim.kind})")
        print(f"  {claim.statement}")
        print(f"  equation  {claim.equation}")
        print(f"  source    {claim.source}")
        print(f"  frozen    {claim.frozen}")
        for entry in claim.code:
            print(f"  code      {_place(entry)}")
        package = _package(claim)
        print(f"  package   {package}" if package else f"  claim     proofs_check/claims/{home(claim.id)}")
        verdict = run_claim(claim, Campaign())
        print(f"  verdict   {_in_words(verdict)}")
        for name, (low, middle, high) in verdict.values.items():
            print(f"            {name}: {middle:.4g} (from {low:.4g} to {high:.4g})")
        if verdict.counterexample:
            print("\n".join("    " + line for line in verdict.counterexample.splitlines()))
        if claim.correction:
            print(f"  true is   {claim.correction}")
        print()
        sound = sound and verdict.sound
    print(CAVEAT)
    return 0 if sound else 1


def _in_words(verdict: Verdict) -> str:
    killed = sum(mutant.killed for mutant in verdict.mutants)
    words = f"{verdict.status} on {verdict.evidence} of {verdict.cases} cases"
    if verdict.worst_error is not None and verdict.tolerance is not None:
        words += f", worst error {verdict.worst_error:.2g} (tolerance {verdict.tolerance:.2g})"
    words += f", {killed} of {len(verdict.mutants)} wrong versions rejected, {verdict.seconds:.1f} s"
    return words + (f"; {verdict.reason}" if verdict.reason else "")


def _package(claim: Claim) -> str:
    """Whose claim it is; empty for ours."""
    plugin = None if claim in CLAIMS else of(claim.id)
    return "" if plugin is None else plugin.origin


def _place(entry: str) -> str:
    try:
        module, name = entry.split(":")
        thing = getattr(importlib.import_module(module), name)
        return f"{module.replace('.', '/')}.py:{inspect.getsourcelines(thing)[1]} {name}"
    except Exception as problem:  # another package may name what is not there
        return f"{entry} (not found: {problem})"


def _write(path: Path, text: str) -> None:
    """All or nothing: a temporary file beside it takes its place."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        raise _Usage(f"{path}: cannot be written ({problem.strerror}).") from None


def _version() -> str:
    try:
        return version("attention-as-descent")
    except PackageNotFoundError:
        return "0+unknown"


if __name__ == "__main__":
    sys.exit(main())
