"""Measure how well and how fast clicks and annotated slices become masks, and record it so that it can be run again.

clicks        a simulated annotator clicks on every organ of every case; Dice after 1, 3, 5 and 10 clicks, for a
              box, and in the whole volume; several methods and sets in one run.
complete      some slices of a volume are annotated: Dice on its other slices.
crosspatient  an organ is annotated in other patients: Dice in this one.
active        slices are annotated one after the other as a strategy names them: Dice after each.
precision     boxes with the encoder in bfloat16 against float32; ends with 1 when bfloat16 costs more than 0.2 Dice.
registration  another patient's masks carried by registration: Dice and seconds, ours beside libraries.
speed         a click on an embedded slice against encoding the slice on every click; start-up time and memory.
load          twenty annotators at one server: seconds by route, memory, and that everybody gets their own answers.
scaling       what further workers are worth for a cohort, and where one scheduler ends.
check         a short fixed run against recorded figures; ends with 1 when one got worse.
figures       the figures of a recorded result, drawn again from its JSON.
compare       what one few-shot method gains over another in recorded results, with intervals.
tables        the tables of README and documents, made anew from recorded results.

A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ssmsam.cli.command import ProgressBar
from ssmsam.cli.live_server import ServerFailed, live_server
from ssmsam.cluster import Model, studies_of
from ssmsam.models.registry import ENCODERS, choose_encoder, default_encoder
from ssmsam.models.weights import CorruptWeights, MissingWeights
from ssmsam.progress import Progress
from ssmsam.report import installed_versions, run_manifest, write_result
from ssmsam_research.cli.options import add_encoder_option
from ssmsam_research.figures.examples import draw_click_comparison, draw_figures
from ssmsam_research.figures.fewshot_examples import draw_examples
from ssmsam_research.figures.recorded import draw_recorded, read_result
from ssmsam_research.figures.tables import update
from ssmsam_research.labelled_sets import LabelledSet, SetNotes, open_set, read_notes
from ssmsam_research.methods.registration import METHODS as REGISTRATIONS
from ssmsam_research.methods.registry import checked_methods, methods_for
from ssmsam_research.model_choice import ModelChoice, PromptedModel
from ssmsam_research.protocols.active import BASELINES, STRATEGIES, ActiveProtocol
from ssmsam_research.protocols.active_run import ActiveRun, draw_active
from ssmsam_research.protocols.check import CheckFile, check_manifest, check_table, measure_check, passes, verdicts
from ssmsam_research.protocols.click_comparison import METHODS as CLICK_METHODS
from ssmsam_research.protocols.click_comparison import (
    ClickComparison,
    TrainingRecord,
    check_precision,
    comparison_table,
)
from ssmsam_research.protocols.click_run import ClickRun
from ssmsam_research.protocols.clicks import ClickProtocol
from ssmsam_research.protocols.complete import PLACEMENTS, CompleteProtocol
from ssmsam_research.protocols.crosspatient import CrossPatientProtocol, SupportPool, support_set
from ssmsam_research.protocols.fewshot_run import FewShotRun, draw_fewshot, needs_encoder
from ssmsam_research.protocols.gains import gains, gains_table
from ssmsam_research.protocols.load import LoadProtocol, Work, run_load
from ssmsam_research.protocols.over_rest import OverRest
from ssmsam_research.protocols.registration import RegistrationRun
from ssmsam_research.protocols.scaling import ScalingProtocol, measure_scaling
from ssmsam_research.protocols.speed import (
    SpeedProtocol,
    measure_adaptation,
    measure_model,
    measure_server,
    write_random_weights,
)
from ssmsam_research.protocols.speed_against import RIVALS, UNET, against_table, compare_clicks, compare_few_shot

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return options.protocol(options)
    except ServerFailed as error:
        print(error, file=sys.stderr)
        return 1
    except (MissingWeights, CorruptWeights, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; start again with the same arguments to go on", file=sys.stderr)
        return 130


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "ssmsam benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    protocols = parser.add_subparsers(
        required=True,
        metavar="PROTOCOL",
    )
    clicks = protocols.add_parser("clicks", help="Dice by number of clicks")
    complete = protocols.add_parser("complete", help="Dice on the rest of a volume by number of annotated slices")
    crosspatient = protocols.add_parser("crosspatient", help="Dice in one patient by what is annotated in others")
    active = protocols.add_parser("active", help="Dice by number of annotated slices, for each strategy")
    precision = protocols.add_parser("precision", help="Dice in bfloat16 against float32")
    registration = protocols.add_parser("registration", help="Dice of masks that registration carries, and seconds")
    speed = protocols.add_parser("speed", help="seconds and memory")
    load = protocols.add_parser("load", help="many annotators at one server")
    scaling = protocols.add_parser("scaling", help="a cohort on several workers")
    check = protocols.add_parser("check", help="a short fixed run against recorded figures")
    for protocol in (clicks, complete, crosspatient, active, check, load, scaling):
        add_encoder_option(protocol)
    precision.add_argument("--encoder", choices=ENCODERS, default="medsam_lite")
    for protocol in (clicks, complete, crosspatient, active, precision, load):
        protocol.add_argument("--cases", nargs="+", metavar="NAME", help="only these cases")
        protocol.add_argument("--validation", action="store_true", help="only cases that the label table keeps aside")
        protocol.add_argument("--limit", type=int, metavar="N", help="at most this many cases")
        protocol.add_argument("--labels", nargs="+", metavar="NAME=NUMBER", help="what the label numbers mean")
        protocol.add_argument("--organs", nargs="+", metavar="NAME", help="only these labels, by name")
    for protocol in (clicks, complete, crosspatient, active):
        protocol.add_argument("--jobs", "--workers", type=int, default=1, metavar="N", help="cases at a time")
        protocol.add_argument("--cluster", metavar="tcp://HOST:PORT", help="on the workers of a Dask scheduler")
        protocol.add_argument("--figures", type=Path, metavar="DIR", help="draw curves and examples there")
    precision.set_defaults(protocol=run_precision)
    clicks.set_defaults(protocol=run_clicks)
    clicks.add_argument("--no-volumes", action="store_true", help="slices only")
    clicks.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        metavar="F",
        help="places in an organ's extent, 0 to 1; 0.5 for a quick run",
    )
    clicks.add_argument(
        "--methods", nargs="+", choices=CLICK_METHODS, metavar="NAME",
        help=f"compare in one run: {', '.join(CLICK_METHODS)} (all, where several sets are given)",
    )  # fmt: skip
    clicks.add_argument(
        "--trained-on", type=Path, default=ROOT / "benchmarks" / "trained_on.json", metavar="JSON",
        help="which sets weights of ours were trained on",
    )  # fmt: skip
    complete.set_defaults(protocol=run_complete)
    complete.add_argument("--slices", type=int, nargs="+", default=[3, 5, 9], metavar="K", help="annotated slices")
    complete.add_argument(
        "--ends", choices=PLACEMENTS, nargs="+", default=list(PLACEMENTS), metavar="ENDS", help="one or both"
    )
    complete.add_argument(
        "--over-rest", action="store_true",
        help="submit the slices to a server that is started for it, ends given and nothing said of what lies beyond",
    )  # fmt: skip
    complete.add_argument("--ask", default="fewshot", metavar="MODEL", help="what is asked --over-rest")
    crosspatient.set_defaults(protocol=run_crosspatient)
    crosspatient.add_argument(
        "--slices", type=int, nargs="+", default=[1, 3, 5, 10], metavar="K", help="annotated in each support patient"
    )
    crosspatient.add_argument("--shots", type=int, default=1, metavar="N", help="support patients at a time")
    crosspatient.add_argument("--supports", type=int, default=3, metavar="N", help="repeat with so many others")
    crosspatient.add_argument("--support-data", type=Path, metavar="DIR", help="where supports come from, else --data")
    crosspatient.add_argument("--query-data", type=Path, metavar="DIR", help="where queries come from, else --data")
    for protocol, name in ((complete, "complete"), (crosspatient, "crosspatient")):
        protocol.add_argument("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(methods_for(name))}")
        protocol.add_argument("--surfaces", action="store_true", help="distances in mm too; takes longer")
    for protocol in (complete, crosspatient, active):
        protocol.add_argument("--store", type=Path, metavar="DIR", help="embeddings are kept there from run to run")
    active.set_defaults(protocol=run_active)
    active.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), metavar="NAME")
    active.add_argument("--budget", type=int, default=8, metavar="K", help="annotated slices of an organ in the end")
    active.add_argument("--seeds", type=int, default=2, metavar="N", help="repeat with so many first slices")
    active.add_argument("--steps", type=int, default=0, metavar="N", help="of adaptation after each slice")
    registration.set_defaults(protocol=run_registration)
    registration.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
    registration.add_argument("--label-names", type=Path, default=ROOT / "benchmarks" / "labels.json", metavar="JSON")
    registration.add_argument("--pairs", type=int, default=6, metavar="N", help="of each set")
    registration.add_argument(
        "--methods", nargs="+", choices=REGISTRATIONS, default=list(REGISTRATIONS), metavar="NAME"
    )
    registration.add_argument("--threads", type=int, default=1, metavar="N")
    registration.add_argument("--json", type=Path, metavar="FILE", help="the result; FILE.log keeps what is finished")
    speed.set_defaults(protocol=run_speed)
    speed.add_argument("--encoder", choices=ENCODERS, action="append", metavar="NAME", help="may be repeated")
    speed.add_argument("--random-weights", action="append", default=[], metavar="NAME", help="time it without weights")
    speed.add_argument("--rounds", type=int, default=7, help="how often each thing is timed")
    speed.add_argument(
        "--against", nargs="+", choices=[*RIVALS, UNET], metavar="NAME",
        help=f"compare with others instead: clicks with {', '.join(RIVALS)}, a few annotated slices with {UNET}",
    )  # fmt: skip
    speed.add_argument("--no-server", action="store_true", help="do not time the start of the server")
    load.set_defaults(protocol=run_load_test)
    load.add_argument("--annotators", type=int, default=LoadProtocol.annotators, metavar="N")
    load.add_argument("--seconds", type=float, default=LoadProtocol.seconds, metavar="S", help="how long they work")
    check.set_defaults(protocol=run_check)
    check.add_argument("--expected", type=Path, required=True, metavar="FILE", help="what was recorded")
    check.add_argument("--record", action="store_true", help="write the figures of this run to it instead")
    scaling.set_defaults(protocol=run_scaling)
    for protocol in (clicks, complete, crosspatient, active, precision, speed, check, load, scaling):
        needed = protocol is not crosspatient
        several: dict[str, Any] = {"nargs": "+"} if protocol in (clicks, precision) else {}
        protocol.add_argument(
            "--data", type=Path, required=needed, metavar="DIR", help="images/NAME and labels/NAME", **several
        )
        protocol.add_argument("--label-names", type=Path, default=ROOT / "benchmarks" / "labels.json", metavar="JSON")
        protocol.add_argument("--weights", type=Path, metavar="DIR", help="folder to look for weights in first")
        protocol.add_argument("--allow-unverified", action="store_true", help="accept weights of your own")
        protocol.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        protocol.add_argument("--threads", type=int, default=default_threads(), metavar="N", help="in each process")
        protocol.add_argument("--json", type=Path, metavar="FILE", help="the result; FILE.log keeps what is finished")
    figures = protocols.add_parser("figures", help="the figures of a recorded result")
    figures.set_defaults(protocol=run_figures)
    figures.add_argument("result", type=Path, metavar="FILE", help="a result in JSON")
    figures.add_argument("--figures", type=Path, required=True, metavar="DIR", help="draw them there")
    compare = protocols.add_parser("compare", help="what one method gains over another")
    compare.set_defaults(protocol=run_compare)
    compare.add_argument("result", type=Path, metavar="FILE", help="a result in JSON")
    compare.add_argument("--method", required=True, metavar="NAME")
    compare.add_argument("--over", required=True, metavar="NAME")
    compare.add_argument("--other", type=Path, metavar="FILE", help="the result that holds the other, if not the same")
    tables = protocols.add_parser("tables", help="the tables of documents, from recorded results")
    tables.set_defaults(protocol=run_tables)
    tables.add_argument("--check", action="store_true", help="change nothing; end with 1 where a table differs")
    for protocol in (figures, compare, tables):
        protocol.add_argument("--json", type=Path, metavar="FILE", help="write there what was done")
    figures.add_argument("--data", type=Path, metavar="DIR", help="the queries, for pictures of examples")
    figures.add_argument("--labels", nargs="+", metavar="NAME=NUMBER", help="what the label numbers mean")
    figures.add_argument("--label-names", type=Path, default=ROOT / "benchmarks" / "labels.json", metavar="JSON")
    return parser.parse_args(arguments)


def default_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def log_file(options: argparse.Namespace) -> Path | None:
    """Where what is finished is kept."""
    return options.json.with_name(options.json.name + ".log") if options.json else None


def model_choice(options: argparse.Namespace) -> ModelChoice:
    """What the options of a model say."""
    store = getattr(options, "store", None)
    return ModelChoice(options.encoder, options.weights, options.device, options.allow_unverified, store=store)


def run_clicks(options: argparse.Namespace) -> int:
    if options.methods or len(options.data) > 1:
        return run_click_comparison(options)
    choice = model_choice(options)
    run = ClickRun(
        labelled_set=labelled_set(options, options.data[0]),
        model=choice,
        weights_sha256=PromptedModel.load(choice).weights_sha256,
        protocol=click_protocol(options),
        jobs=options.jobs,
        cluster=options.cluster,
        threads=options.threads,
    )
    log = log_file(options)
    with tqdm(unit="case", desc=run.labelled_set.name, disable=None) as bar:
        result = run.run(log, progress=onto(bar))
    print_clicks(result)
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    if options.figures:
        for path in draw_figures(options.figures, run, result):
            print(f"figure: {path}")
    return 0


def click_protocol(options: argparse.Namespace) -> ClickProtocol:
    protocol = ClickProtocol(volumes=not options.no_volumes)
    if options.fractions is None:
        return protocol
    if not all(0 <= fraction <= 1 for fraction in options.fractions):
        raise ValueError(f"--fractions are places from 0 to 1 in an organ's extent, got {options.fractions}")
    return replace(protocol, slice_fractions=tuple(sorted(set(options.fractions))))


def run_click_comparison(options: argparse.Namespace) -> int:
    """Several methods on several sets. What is finished is in FILE.log, case by case."""
    notes = {folder.resolve().name: read_notes(options.label_names, folder.resolve().name) for folder in options.data}
    run = ClickComparison(
        sets=several_sets(options, notes),
        methods={name: CLICK_METHODS[name] for name in options.methods or CLICK_METHODS},
        common=model_choice(options),
        protocol=click_protocol(options),
        training=TrainingRecord.read(options.trained_on),
        held_out={name: found.validation for name, found in notes.items()},
        jobs=options.jobs,
        cluster=options.cluster,
        threads=options.threads,
    )
    log = log_file(options)
    with tqdm(unit="case", desc="clicks", disable=None) as bar:
        result = run.run(log, progress=onto(bar))
    print(comparison_table(result))
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    if options.figures:
        for path in draw_click_comparison(options.figures, result):
            print(f"figure: {path}")
    return 0


def run_precision(options: argparse.Namespace) -> int:
    notes = {folder.resolve().name: read_notes(options.label_names, folder.resolve().name) for folder in options.data}
    log = log_file(options)
    choice = model_choice(options)
    with tqdm(unit="case", desc="precision", disable=None) as bar:
        result = check_precision(
            several_sets(options, notes), choice, threads=options.threads, log_file=log, progress=onto(bar)
        )
    print(comparison_table(result))
    print(f"bfloat16 costs {result['loss']:.2f} Dice on the mean, {result['limit']} are allowed; ", end="")
    print(f"{result['worst_set']:.2f} on the worst set")
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    return 0 if result["passes"] else 1


def run_registration(options: argparse.Namespace) -> int:
    """Pairs of training cases only: registration is chosen by this, and validation chooses nothing."""
    sets = []
    for folder in options.data:
        notes = read_notes(options.label_names, folder.resolve().name)
        names = [case.name for case in open_set(folder).cases if case.name not in notes.validation]
        sets.append(open_set(folder, label_names=notes.label_names, only=names))
    (pairs,) = positive([options.pairs], "--pairs")
    run = RegistrationRun(tuple(sets), tuple(options.methods), pairs, threads=options.threads)
    log = log_file(options)
    with tqdm(unit="pair", desc="registration", disable=None) as bar:
        result = run.run(log, progress=onto(bar))
    print(f"{'Dice (%), processor seconds':34}" + "".join(f"{one.name:>20}" for one in sets))
    for name, found in result["methods"].items():
        cells = (f"{one['dice']['mean']:11.1f} {one['seconds']:8.2f}" for one in found["sets"].values())
        print(f"{name:34}" + "".join(cells))
    for name, why in result["left_out"].items():
        print(f"{name}: {why}")
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    return 0


def several_sets(options: argparse.Namespace, notes: Mapping[str, SetNotes]) -> tuple[LabelledSet, ...]:
    """The sets of --data. --cases, --validation and --organs concern the sets that have such cases or organs."""
    chosen = []
    wanted = set(options.cases or ())
    for folder in options.data:
        of_set = notes[folder.resolve().name]
        names = label_names(options, of_set)
        organs = [organ for organ in options.organs or () if organ in names.values()]
        everyone = [case.name for case in open_set(folder).cases]
        kept = of_set.validation if options.validation and of_set.validation else everyone
        only = [name for name in everyone if name in kept and (not options.cases or name in options.cases)]
        wanted -= set(everyone)
        if only and (organs or not options.organs):
            chosen.append(open_set(folder, label_names=names, only=only, limit=options.limit, organs=organs))
    if wanted:
        raise ValueError(f"no set of --data has a case {', '.join(sorted(wanted))}")
    if not chosen:
        raise ValueError("--cases, --validation and --organs leave no case of --data")
    return tuple(chosen)


def labelled_set(options: argparse.Namespace, folder: Path) -> LabelledSet:
    """The cases of a folder that the options ask for."""
    notes = read_notes(options.label_names, folder.resolve().name)
    only = options.cases
    if options.validation and not notes.validation:
        raise ValueError(f"{options.label_names} keeps no case of {folder} aside; name them with --cases")
    if options.validation:
        only = [name for name in notes.validation if only is None or name in only]
    return open_set(
        folder, label_names=label_names(options, notes), only=only, limit=options.limit, organs=options.organs
    )


def label_names(options: argparse.Namespace, notes: SetNotes) -> dict[int, str]:
    """What the table says, changed by --labels."""
    names = dict(notes.label_names)
    for pair in options.labels or ():
        name, _, number = pair.rpartition("=")
        if not name or not number.isdecimal():
            raise ValueError(f"--labels takes NAME=NUMBER, got {pair!r}")
        names[int(number)] = name
    return names


def run_complete(options: argparse.Namespace) -> int:
    if options.over_rest:
        return run_over_rest(options)
    protocol = CompleteProtocol(slices=positive(options.slices, "--slices"), placements=tuple(options.ends))
    return run_fewshot(options, protocol, labelled_set(options, options.data), None)


def run_over_rest(options: argparse.Namespace) -> int:
    """Five slices, or the only number that is given, as a user submits them."""
    choice = model_choice(options)
    wanted = options.slices[0] if len(options.slices) == 1 else 5
    data = labelled_set(options, options.data)
    run = OverRest(data, choice, slices=wanted, method=options.ask, threads=options.threads)
    with tqdm(unit="case", desc=f"{data.name} over REST", disable=None) as bar:
        result = run.run(ROOT / "ssmsam_app", progress=onto(bar))
    print_over_rest(result)
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    return 0


def print_over_rest(result: dict[str, Any]) -> None:
    """Dice in per cent on the other slices, a row for each label; the gain over interpolation and seconds below."""
    methods = {name: next(iter(found.values())) for name, found in result["methods"].items()}
    print(f"\n{'Dice of the other slices (%)':30}" + "".join(f"{name:>18}" for name in methods))
    for label in next(iter(methods.values()))["per_label"]:
        print(f"{label[:30]:30}" + "".join(f"{found['per_label'][label]['mean']:18.1f}" for found in methods.values()))
    print(f"{'mean over labels':30}" + "".join(f"{found['mean_dice']:18.1f}" for found in methods.values()))
    for label, gain in result["worst_against_interpolation"].items():
        print(f"{label}: {gain['mean']:+.1f} over interpolation, {gain['smallest']:+.1f} in the worst case")
    print(f"seconds to the first proposal: median {result['seconds']['median']}, {result['seconds']['first_proposal']}")


def run_crosspatient(options: argparse.Namespace) -> int:
    query_data, support_data = options.query_data or options.data, options.support_data or options.data
    if query_data is None or support_data is None:
        raise ValueError("crosspatient needs --data, or both --query-data and --support-data")
    shots, supports = positive([options.shots, options.supports], "--shots and --supports")
    protocol = CrossPatientProtocol(shots=shots, supports=supports, slices=positive(options.slices, "--slices"))
    queries = labelled_set(options, query_data)
    notes = read_notes(options.label_names, support_data.resolve().name)
    everyone = open_set(support_data, label_names=label_names(options, notes))
    with tqdm(unit="case", desc="reading supports", disable=None) as bar:
        pool = SupportPool.open(support_set(everyone, queries, notes.validation), progress=onto(bar))
    return run_fewshot(options, protocol, queries, pool)


def run_fewshot(
    options: argparse.Namespace,
    protocol: CompleteProtocol | CrossPatientProtocol,
    queries: LabelledSet,
    pool: SupportPool | None,
) -> int:
    methods = checked_methods(options.methods, protocol.name)
    choice = model_choice(options)
    run = FewShotRun(
        protocol=protocol,
        queries=queries,
        methods=methods,
        model=choice,
        weights_sha256=PromptedModel.load(choice).weights_sha256 if needs_encoder(methods) else None,
        pool=pool,
        surfaces=options.surfaces,
        jobs=options.jobs,
        cluster=options.cluster,
        threads=options.threads,
    )
    log = log_file(options)
    with tqdm(unit="case", desc=queries.name, disable=None) as bar:
        result = run.run(log, progress=onto(bar))
    print_fewshot(result)
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    if options.figures:
        drawn = draw_fewshot(options.figures, result, queries.name)
        for path in drawn + draw_examples(options.figures, result, queries):
            print(f"figure: {path}")
    return 0


def run_active(options: argparse.Namespace) -> int:
    positive([options.budget, options.seeds], "--budget and --seeds")
    choice = model_choice(options)
    run = ActiveRun(
        protocol=ActiveProtocol(
            strategies=tuple(dict.fromkeys(options.strategies)),
            budget=options.budget,
            seeds=tuple(range(options.seeds)),
            steps=options.steps,
        ),
        queries=labelled_set(options, options.data),
        model=choice,
        weights_sha256=PromptedModel.load(choice).weights_sha256,
        jobs=options.jobs,
        cluster=options.cluster,
        threads=options.threads,
    )
    log = log_file(options)
    with tqdm(unit="case", desc=run.queries.name, disable=None) as bar:
        result = run.run(log, progress=onto(bar))
    print_active(result)
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    if options.figures:
        for path in draw_active(options.figures, result, run.queries.name):
            print(f"figure: {path}")
    return 0


def onto(bar: tqdm) -> Progress:
    """Progress shown on a bar."""

    def show(phase: str, done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


def positive(numbers: list[int], option: str) -> tuple[int, ...]:
    if min(numbers) < 1:
        raise ValueError(f"{option} must be at least 1, got {min(numbers)}")
    return tuple(numbers)


def print_fewshot(result: dict[str, Any]) -> None:
    """Dice and IoU in per cent, means over labels: a row for each setting and score, a column for each method."""
    print(f"\n{'Dice (IoU) in %, mean over labels':44}" + "".join(f"{method[:18]:>19}" for method in result["methods"]))
    for setting, found in next(iter(result["methods"].values())).items():
        for score in found["scores"]:
            cells = [settings[setting]["scores"][score] for settings in result["methods"].values()]
            shown = "".join(f"{cell['mean_dice']:11.1f} ({cell['mean_iou']:5.1f})" for cell in cells)
            print(f"{setting + ': ' + score:44}{shown}")
    print(f"{'seconds for a mask':44}" + "".join(f"{s:19.2f}" for s in result["seconds"].values()))
    for case, labels in result["labels_not_run"].items():
        print(f"{case}: too few support patients hold {', '.join(labels)}; not run")


def run_compare(options: argparse.Namespace) -> int:
    """Print what one method gains over another, with 95 % bootstrap intervals over cases."""
    first = read_result(options.result)
    second = read_result(options.other) if options.other else first
    print(f"Dice of {options.method} minus that of {options.over}, in points; * where the interval leaves out 0")
    found = gains(first, second, options.method, options.over)
    print("\n".join(gains_table(found)))
    if options.json:
        as_json = {
            setting: {
                score: {label: one.as_json() for label, one in labels.items()} for score, labels in scores.items()
            }
            for setting, scores in found.items()
        }
        write_result(options.json, {"method": options.method, "over": options.over, "gains": as_json})
    return 0


def print_active(result: dict[str, Any]) -> None:
    """Dice in per cent, mean over labels: a row for each strategy, a column for each number of annotated slices."""
    baselines = [name for name in BASELINES if f"slices_ratio_to_{name}" in result]
    for score, strategies in result["curves"].items():
        numbers = list(next(iter(strategies.values())))
        told = "   slices needed, ratio to " + ", ".join(baselines) if baselines else ""
        print(f"\n{'Dice (%), ' + score:28}" + "".join(f"{n:>8}" for n in numbers) + told)
        for strategy, curve in strategies.items():
            cells = "".join(f"{curve[n]['mean_dice']:8.1f}" if n in curve else f"{'-':>8}" for n in numbers)
            ratios = [result[f"slices_ratio_to_{name}"][score].get(strategy) for name in baselines]
            print(f"{strategy:28}{cells}" + "".join(f"{one['mean']:8.2f}" if one else " " * 8 for one in ratios))
    found = result["reliability"]["volume_dice"]
    print(f"\nexpected Dice: correlation {found['correlation']}, bias {found['bias']:+.1f} points, n {found['n']}")


def print_clicks(result: dict[str, Any]) -> None:
    """Dice in per cent, a row for each label, a column for each prompt; the mean IoU below."""
    for task in ("slice", "volume"):
        prompts = result["tasks"].get(task)
        if not prompts:
            continue
        print(f"\nDice of a {task} (%){'':8}" + "".join(f"{prompt:>11}" for prompt in prompts))
        for label in next(iter(prompts.values()))["per_label"]:
            cells = "".join(f"{found['per_label'][label]['mean']:11.1f}" for found in prompts.values())
            print(f"{label[:28]:28}{cells}")
        for name, mean in (("mean over labels", "mean_dice"), ("mean IoU over labels", "mean_iou")):
            print(f"{name:28}" + "".join(f"{found[mean]:11.1f}" for found in prompts.values()))
    good = result["tasks"]["clicks_to_good"]
    print(
        f"\nclicks to {good['dice']:.0f} % on a slice: {good['mean']:.1f} "
        f"(not reached on {good['not_reached_percent']:.0f} % of {good['n_slices']} slices, counted as the limit)"
    )


def run_speed(options: argparse.Namespace) -> int:
    if options.against:
        return run_against(options)
    case = open_set(options.data, limit=1).cases[0]
    volume, labels = case.read()
    protocol = SpeedProtocol(rounds=options.rounds, threads=options.threads)
    encoders: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ssmsam-random-") as folder:
        for name in dict.fromkeys(options.encoder or [choose_encoder(default_encoder(), folder=options.weights)]):
            random, choice = name in options.random_weights, timed_model(options, name, Path(folder))
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:  # its own peak of memory
                encoders[name] = {
                    "random_weights": random,
                    **alone.submit(measure_model, choice, volume, protocol).result(),
                }
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                adaptation = alone.submit(measure_adaptation, choice, volume, labels, protocol).result()
            encoders[name]["fewshot"] = adaptation
            print_speed(name, encoders[name])
    server = None if options.no_server else time_server(open_set(options.data))
    result = {
        "protocol": "speed",
        "method": "sam_2d",
        "settings": {
            "rounds": protocol.rounds,
            "threads": protocol.threads,
            "volume": case.name,
            "shape": volume.shape,
        },
        "encoders": encoders,
        "server": server,
        "manifest": run_manifest(
            protocol="speed",
            data=LabelledSet(options.data.resolve().name, (case,), {}).manifest(),
            weights={name: found["weights_sha256"] for name, found in encoders.items()},
            device=options.device,
        ),
    }
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    return 0


def timed_model(options: argparse.Namespace, name: str, folder: Path) -> ModelChoice:
    """Our model of that name; with random weights, written to ``folder``, where these were asked for."""
    random = name in options.random_weights
    weights = write_random_weights(name, folder).parent if random else options.weights
    return ModelChoice(name, weights, options.device, random or options.allow_unverified)


def run_against(options: argparse.Namespace) -> int:
    """Clicks and few slices of the first case against other packages."""
    names = read_notes(options.label_names, options.data.resolve().name).label_names
    data = open_set(options.data, label_names=names, limit=1)
    protocol, case = SpeedProtocol(rounds=options.rounds, threads=options.threads), data.cases[0]
    encoders = list(dict.fromkeys(options.encoder or [choose_encoder(default_encoder(), folder=options.weights)]))
    with tempfile.TemporaryDirectory(prefix="ssmsam-random-") as folder, tqdm(desc="against", disable=None) as bar:
        ours = {name: timed_model(options, name, Path(folder)) for name in encoders}
        contestants: dict[str, ModelChoice | str] = {f"ours, {name}": choice for name, choice in ours.items()}
        rivals = [name for name in options.against if name in RIVALS]
        contestants |= {name: name for name in rivals}
        clicks = (
            compare_clicks(contestants, case, protocol, device=options.device, progress=onto(bar)) if rivals else {}
        )
        few_shot = {}
        if UNET in options.against:
            few_shot = compare_few_shot(ours[encoders[0]], case, data, protocol, progress=onto(bar))
        weights = {name: PromptedModel.load(choice).weights_sha256 for name, choice in ours.items()}
    print(against_table(clicks, few_shot))
    settings = {
        "rounds": protocol.rounds,
        "threads": protocol.threads,
        "volume": case.name,
        "random_weights": [*options.random_weights, *rivals],
        "packages": installed_versions({**RIVALS, UNET: "monai"}[name] for name in options.against),
    }
    manifest = run_manifest(
        protocol="speed", data=data.manifest(), weights=weights, device=options.device, settings=settings
    )
    result = {"protocol": "speed", "settings": settings, "clicks": clicks, "few_shot": few_shot, "manifest": manifest}
    if options.json:
        print(f"result: {write_result(options.json, result)}")
    return 0


def run_check(options: argparse.Namespace) -> int:
    file = CheckFile.read(options.expected)
    names = read_notes(options.label_names, options.data.resolve().name).label_names
    data = open_set(options.data, label_names=names, only=file.cases, organs=file.organs)
    if file.data_sha256 != data.manifest()["sha256"] and not options.record:
        raise ValueError(f"{options.expected} was recorded on other data than {options.data}; record it with --record")
    choice = model_choice(options)
    with tqdm(unit="step", desc="check", disable=None) as bar:
        measured = measure_check(data, choice, threads=options.threads, progress=onto(bar))
    if options.record:
        file = file.recorded(measured, data)
        print(f"recorded: {file.write(options.expected, check_manifest(data, choice))}")
    print(check_table(file.expected, measured))
    found = verdicts(file.expected, measured)
    if options.json:
        print(f"result: {write_result(options.json, {'measured': measured, 'verdicts': found})}")
    return 0 if passes(found) else 1


def run_tables(options: argparse.Namespace) -> int:
    """Ends with 1 when a table had to be made anew and ``--check`` was given."""
    changed = [str(path.relative_to(ROOT)) for path in update(ROOT, check=options.check)]
    print("\n".join(changed) or "all tables are as their results say")
    if options.json:
        write_result(options.json, {"documents": changed})
    return int(bool(changed) and options.check)


def run_figures(options: argparse.Namespace) -> int:
    result, queries = read_result(options.result), None
    if options.data:
        names = label_names(options, read_notes(options.label_names, options.data.resolve().name))
        queries = open_set(options.data, label_names=names)
    drawn = draw_recorded(options.figures, result, queries)
    for path in drawn:
        print(f"figure: {path}")
    if options.json:
        write_result(options.json, {"result": options.result.name, "figures": [path.name for path in drawn]})
    return 0


def time_server(data: LabelledSet) -> dict[str, Any]:
    """Start the server on links to the images, so that it writes nothing beside them."""
    with tempfile.TemporaryDirectory(prefix="ssmsam-studies-") as folder:
        for case in data.cases:
            (Path(folder) / case.image.name).symlink_to(case.image.resolve())
        found = measure_server(ROOT / "ssmsam_app", Path(folder))
    print(f"server: answers {found['start_seconds']['median']:.1f} s after the command, {found['memory_mb']} MB then")
    return found


def run_load_test(options: argparse.Namespace) -> int:
    """Ends with 1 when an annotator got an error or somebody else's answer."""
    data, protocol = (
        labelled_set(options, options.data),
        LoadProtocol(annotators=options.annotators, seconds=options.seconds),
    )
    with tempfile.TemporaryDirectory(prefix="ssmsam-load-", ignore_cleanup_errors=True) as folder:
        studies = Path(folder) / "studies"
        studies.mkdir()
        for case in data.cases:
            shutil.copy(case.image, studies)
        work = [
            Work(case.name, label, volume, truth)
            for case in data.cases
            for volume, labels in [case.read()]
            for label, truth in data.targets(labels)
        ]
        conf = {"encoder": options.encoder, "store": str(Path(folder) / "store"), "threads": str(options.threads)}
        with live_server(app=ROOT / "ssmsam_app", studies=studies, conf=conf) as server:
            found = run_load(server, work, protocol)
    print(f"{'seconds':34}{'n':>6}{'p50':>8}{'p95':>8}{'p99':>8}")
    for route, one in found["routes"].items():
        print(f"{route:34}{one['n']:6}{one['p50']:8.3f}{one['p95']:8.3f}{one['p99']:8.3f}")
    print(f"memory: {found['memory_mb']['first']} MB at first, {found['memory_mb']['peak']} MB at most")
    failed = [*found["errors"], *found["wrong"]]
    print("\n".join(failed[:20]) or "no error, and everybody got their own answers")
    if options.json:
        settings = {**protocol.as_json(), "threads": options.threads}
        manifest = run_manifest(protocol="load", data=data.manifest(), weights={}, settings=settings)
        result = {"protocol": "load", "encoder": options.encoder, "settings": settings, **found, "manifest": manifest}
        print(f"result: {write_result(options.json, result)}")
    return 1 if failed else 0


def print_speed(name: str, found: dict[str, Any]) -> None:
    seconds = {what: timing["median"] for what, timing in found["seconds"].items()}
    note = ", random weights" if found["random_weights"] else ""
    print(f"{name} ({found['input_size']} pixels{note}), medians:")
    print(f"  embedding a slice            {seconds['embed_slice']:8.3f} s")
    print(f"  first click on a slice       {seconds['first_click']:8.3f} s")
    print(f"  later click                  {seconds['later_click']:8.3f} s")
    print(f"  later click with re-encoding {seconds['reencoding_click']:8.3f} s  ({found['ratio']:.1f} times as long)")
    print(f"  peak memory                  {found['peak_memory_mb']:8d} MB")
    few = found["fewshot"]
    print(f"  training epoch on 5 slices   {few['epoch_cached']:8.3f} s")
    print(f"  the same with the encoder    {few['epoch_encoding']:8.3f} s  ({few['ratio']:.1f} times as long)")
    if "adapt" in few:
        print(f"  adapting to 5 slices         {few['adapt']:8.2f} s  ({few['adaptation_steps']} steps)")
        print(f"  segmenting a slice after it  {few['segment_slice']:8.3f} s")


if __name__ == "__main__":
    sys.exit(main())


def run_scaling(options: argparse.Namespace) -> int:
    """Embeds every study of a folder several times."""
    studies = studies_of(options.data)
    choice = model_choice(options)
    sha256 = PromptedModel.load(choice).weights_sha256
    weights = None if options.weights is None else str(options.weights)
    model = Model(encoder=choice.encoder, weights=weights, allow_unverified=options.allow_unverified)
    with tempfile.TemporaryDirectory(prefix="ssmsam-scaling-") as folder, ProgressBar() as progress:
        found = measure_scaling(studies, model, Path(folder), ScalingProtocol(), progress=progress)
    for name in ("embedding", "simulation"):
        for count, one in found[name].items():
            print(f"{name}, {count} workers: efficiency {100 * one['efficiency']:.0f} %")
    print(f"{found['overhead_ms']} ms a task")
    settings = asdict(ScalingProtocol())
    data = {"set": Path(options.data).name, "cases": [study.name for study in studies]}
    manifest = run_manifest(protocol="scaling", data=data, weights={choice.encoder: sha256}, settings=settings)
    record = {"protocol": "scaling", "encoder": choice.encoder, "settings": settings, **found, "manifest": manifest}
    if options.json:
        write_result(options.json, record)
    return 0
