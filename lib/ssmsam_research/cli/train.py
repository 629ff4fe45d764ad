"""Train networks, of the encoders `small` and `medsam_lite`.

    ssmsam train pack --data DIR [DIR ...] --out PACK   labelled folders (images/ + labels/) -> pack
    ssmsam train train --data PACK --out FILE           train; go on with --resume FILE.ckpt
    ssmsam train ssm --data PACK --weights FILE --out FILE   then SSM-SAM's decoder behind that encoder
    ssmsam train embed --data DIR [DIR ...] --out CACHE      slices through the encoder medsam_lite, once
    ssmsam train lite --data CACHE --out FILE           then its mask decoder, for clicks; see --resume
    ssmsam train embed-volumes --data DIR [DIR ...] --out CACHE   slices of volumes, for the next
    ssmsam train fewshot --data CACHE --out FILE        its few-shot decoder and online optimiser
    ssmsam train volume-head --data DIR [DIR ...] --cache CACHE --out FILE   what judges its proposals
    ssmsam train record NAME                            the new weights' sha256 into the manifest
    ssmsam train curve FILE.jsonl --out PNG             draw the learning curve

Several processes share the batches of `lite` and `fewshot`, and one of them writes:

    torchrun --nproc-per-node 2 apps/pretrain.py fewshot --batches 2 --data CACHE --out FILE

As `python -m ssmsam_research.cli.train train ...` it needs only torch, numpy, scipy, scikit-image and safetensors, so
that it also runs on a GPU machine without the rest of this project's requirements.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from ssmsam.volume.volume import Volume
    from ssmsam_research.labelled_sets import Case
    from ssmsam_research.synthetic.samples import SampleCase


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step of training; the exit status."""
    options = parse(arguments)
    try:
        STEPS[options.command](options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; --resume goes on from the last checkpoint, where the step has it", file=sys.stderr)
        return 130
    if options.json:
        from ssmsam.report import run_manifest, write_result

        settings = {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
        write_result(options.json, {"manifest": run_manifest(protocol="train", data={}, weights={}, settings=settings)})
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "ssmsam train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write there what was asked for, and with what code")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_pack(commands.add_parser("pack", help="prepare labelled folders for training"))
    _add_train(commands.add_parser("train", help="train the small model on a pack"))
    _add_ssm(commands.add_parser("ssm", help="train SSM-SAM's decoder behind a frozen encoder"))
    _add_embed(commands.add_parser("embed", help="embed labelled slices with medsam_lite"))
    _add_lite(commands.add_parser("lite", help="train the mask decoder of medsam_lite for clicks"))
    volumes = commands.add_parser("embed-volumes", help="embed slices of labelled volumes with medsam_lite")
    _add_embed(volumes)
    volumes.add_argument("--partners", type=int, default=0, metavar="N", help="register so many volumes with each")
    decoder = commands.add_parser("fewshot", help="train the few-shot decoder of medsam_lite")
    _add_lite(decoder)
    decoder.add_argument("--start", type=Path, help="weights to begin with, default: those of `small`")
    decoder.add_argument("--recipe", type=Path, help="JSON of all settings, as beside weights; instead of the options")
    put_right = commands.add_parser(
        "correction", help="train what the few-shot decoder puts right after held-out slices"
    )
    put_right.add_argument("--data", type=Path, required=True, help="folder of `embed-volumes`")
    put_right.add_argument("--without", nargs="*", default=[], metavar="SET", help="sets left out of training")
    put_right.add_argument("--start", type=Path, required=True, help="few-shot weights, of which all else stays")
    put_right.add_argument("--recipe", type=Path, help="JSON of all settings, as beside weights")
    put_right.add_argument("--out", type=Path, required=True, help="weights to write (.safetensors)")
    put_right.add_argument("--threads", type=int, default=1)
    _add_volume_head(commands.add_parser("volume-head", help="train what judges proposals along a volume"))
    recorded = commands.add_parser("record", help="write size and sha256 of packaged weights into the manifest")
    recorded.add_argument("name", help="of the weights, such as small")
    _add_curve(commands.add_parser("curve", help="draw the learning curve of a training log"))
    return parser.parse_args(arguments)


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders with images/ and labels/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--anatomy", type=int, default=0, metavar="N", help="add N synthetic abdomens")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="CASE", help="cases kept for validation")
    parser.add_argument(
        "--regions-only", nargs="*", default=[], metavar="FOLDER", help="folders whose labels are not used"
    )
    parser.add_argument(
        "--without-labels", nargs="*", default=[], metavar="NAME", help="organs to pack as though nobody had drawn them"
    )
    parser.add_argument("--limit", type=int, default=10**6, help="at most this many cases of a folder")
    parser.add_argument(
        "--labels", type=Path, help="JSON with the labels' names by dataset, as in benchmarks/labels.json"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--out", type=Path, required=True, help="weights to write (.safetensors)")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--resume", type=Path, help="checkpoint (.ckpt) to go on from")
    parser.add_argument("--start", type=Path, help="weights (.safetensors) to begin with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor knows this type of number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--pairs", type=int, default=4, help="pairs of slices in a batch")
    parser.add_argument("--targets", type=int, default=2, help="targets for each pair")
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 192, 256], help="sides of training crops")
    parser.add_argument("--rounds", type=int, default=3, help="prompting rounds on each batch")
    parser.add_argument("--groups", type=int, default=2, help="groups of slices in a batch of the largest side")
    parser.add_argument("--group-sides", type=int, nargs="+", default=[160, 256], help="sides of the groups' crops")
    parser.add_argument("--group-share", type=float, default=0.65, help="share of steps on groups, not on clicks")
    parser.add_argument("--cross-share", type=float, default=0.5, help="share of groups over two patients")
    parser.add_argument("--twin-share", type=float, default=0.3, help="share of others that stand for two patients")
    parser.add_argument("--twin-bend", type=float, default=1.5, help="how much more than other images twins are bent")
    parser.add_argument("--twin-recolour", type=float, default=0.0, help="chance that a twin is repainted a little")
    parser.add_argument("--organ-share", type=float, default=0.7, help="share of targets in one volume that are organs")
    parser.add_argument("--semantic-weight", type=float, default=0.3, help="weight of naming organs, as a side task")
    parser.add_argument("--dataset-weights", default="{}", help='JSON, e.g. {"sabs_ct": 3}')


def _add_ssm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--weights", type=Path, required=True, help="the small model's weights (.safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="start to write (.safetensors)")
    parser.add_argument("--start", type=Path, help="an earlier start whose modules to begin with")
    parser.add_argument("--resume", type=Path, help="checkpoint (.ckpt) of plain training to go on from")
    parser.add_argument("--minutes", type=float, default=30.0, help="of plain training")
    parser.add_argument("--meta-minutes", type=float, default=20.0, help="of meta-learning after it")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--cross-share", type=float, default=0.5, help="share of groups over two patients")
    parser.add_argument("--twin-share", type=float, default=0.3, help="share of others that stand for two patients")
    parser.add_argument("--levels", type=int, choices=(0, 1, 2), default=0, help="further maps for mask attention")
    parser.add_argument("--learn-rates", action="store_true", help="meta-learn the learning rates too")
    parser.add_argument("--groups", type=int, default=2, help="groups of slices in a batch of the largest side")
    parser.add_argument("--group-sides", type=int, nargs="+", default=[160, 256], help="sides of the groups' crops")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset-weights", default="{}", help='JSON, e.g. {"sabs_ct": 3}')


def _add_embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with images/ and labels/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache; what is there is kept")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="CASE", help="cases kept for validation")
    parser.add_argument("--slices", type=int, default=16, help="at most this many slices of a case")
    parser.add_argument("--limit", type=int, default=10**6, help="at most this many cases of a folder")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor knows this type of number")
    parser.add_argument("--threads", type=int, default=1)


def _add_lite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--without", nargs="*", default=[], metavar="SET", help="sets left out of training")
    parser.add_argument("--out", type=Path, required=True, help="weights to write (.safetensors)")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--resume", type=Path, help="checkpoint (.ckpt) to go on from")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batches", type=int, default=1, help="of each step; torchrun's processes share them")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor knows this type of number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def _add_volume_head(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with images/ and labels/")
    parser.add_argument("--cache", type=Path, required=True, help="folder of embeddings and examples; kept")
    parser.add_argument("--out", type=Path, required=True, help="weights to write (.safetensors)")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="CASE", help="cases kept for validation")
    parser.add_argument("--limit", type=int, default=10**6, help="at most this many cases of a folder")
    parser.add_argument("--start", type=Path, help="weights whose choices are kept: only what to expect is learned")
    parser.add_argument("--within", type=int, default=4, help="times that slices of a volume itself are annotated")
    parser.add_argument("--across", type=int, default=2, help="times that slices of other volumes are")
    parser.add_argument("--unfamiliar", type=int, default=4, help="times that targets or decoder are unfamiliar")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor knows this type of number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def _add_curve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=Path, help="the .jsonl beside the weights")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png)")


def pack(arguments: argparse.Namespace) -> None:
    """Write one file for each case; cases that are there already are kept."""
    from ssmsam.volume.intensity import recipe_for
    from ssmsam_research.synthetic.samples import make_case
    from ssmsam_research.training.pack import pack_info, pack_volume, save_packed

    names = json.loads(arguments.labels.read_text()) if arguments.labels else {}

    def add(dataset: str, name: str, load: Callable[[], tuple[Volume, Volume]]) -> None:
        if (arguments.out / f"{dataset}-{name}.npz").exists():
            return
        image, label = load()
        named = names.get(dataset, {}).get("labels", {})
        hidden = [int(value) for value, name in named.items() if name in arguments.without_labels]
        label = label.with_array(np.where(np.isin(label.array, hidden), 0, label.array))
        values = [int(v) for v in np.unique(label.array) if v > 0]
        labels = {} if dataset in arguments.regions_only else {named.get(str(v), str(v)): v for v in values}
        scale = recipe_for(image).scale(image)
        info = pack_info(image, dataset=dataset, name=name, labels=labels)
        packed = pack_volume(image, label, scale=(scale.low, scale.high), info=info, seed=len(name))
        save_packed(packed, arguments.out)

    for image_path, label_path in tqdm(list(_cases(arguments)), unit="case"):
        dataset, name = image_path.parent.parent.name, image_path.name.split(".")[0]
        add(dataset, name, partial(_read_pair, image_path, label_path))
    for case in tqdm(list(_abdomens(arguments.anatomy)), unit="abdomen"):
        add("anatomy", case.name, partial(make_case, case))


def _read_pair(image: Path, label: Path) -> tuple[Volume, Volume]:
    from ssmsam.reading import read_volume

    return read_volume(image), read_volume(label)


def _abdomens(count: int) -> Iterator[SampleCase]:
    """Synthetic patients for training: other seeds than the sample dataset's, every contrast and slice distance."""
    from ssmsam_research.synthetic.samples import SampleCase

    for seed in range(1000, 1000 + count):
        contrast = ("CT", "T2", "CT", "T1")[seed % 4]
        spacing = (3.0 + seed % 5, 2.1, 2.1)
        shape = (round(220 / spacing[0]), 160, 160)
        yield SampleCase(f"{seed}", seed, contrast, ("LPS", "LAS", "RAS")[seed % 3], shape, spacing)


def _cases(arguments: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    for folder in arguments.data:
        images = [p for p in sorted((folder / "images").iterdir()) if p.name.split(".")[0] not in arguments.exclude]
        for image in images[: arguments.limit]:
            label = folder / "labels" / image.name
            if label.exists():
                yield image, label


def train(arguments: argparse.Namespace) -> None:
    """Train with a progress bar in seconds."""
    import torch

    from ssmsam_research.training.groups import GroupConfig
    from ssmsam_research.training.pack import load_pack
    from ssmsam_research.training.prompt_episodes import EpisodeConfig
    from ssmsam_research.training.prompt_training import TrainingConfig, train

    torch.set_num_threads(arguments.threads)
    episodes = EpisodeConfig(
        pairs=arguments.pairs,
        targets=arguments.targets,
        sides=tuple(arguments.sides),
        dataset_weights=json.loads(arguments.dataset_weights),
    )
    groups = GroupConfig(
        groups=arguments.groups,
        sides=tuple(arguments.group_sides),
        cross_share=arguments.cross_share,
        twin_share=arguments.twin_share,
        twin_bend=arguments.twin_bend,
        twin_recolour=arguments.twin_recolour,
        organ_share=arguments.organ_share,
        dataset_weights=json.loads(arguments.dataset_weights),
    )
    config = TrainingConfig(
        minutes=arguments.minutes,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        rounds=arguments.rounds,
        workers=arguments.workers,
        device=arguments.device,
        bfloat16=arguments.bfloat16,
        group_share=arguments.group_share,
        semantic_weight=arguments.semantic_weight,
        episodes=episodes,
        groups=groups,
    )
    bar = tqdm(total=int(60 * config.minutes), unit="s")

    def progress(phase: str, done: int, total: int) -> None:
        bar.update(done - bar.n)

    trainer = train(
        load_pack(arguments.data),
        out=arguments.out,
        config=config,
        resume=arguments.resume,
        start=arguments.start,
        progress=progress,
    )
    bar.close()
    print(f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes -> {arguments.out}")


def embed(arguments: argparse.Namespace) -> None:
    """One pair of files for each case. May be stopped and started again."""
    import torch

    from ssmsam.models.registry import load_encoder
    from ssmsam_research.labelled_sets import open_set
    from ssmsam_research.training.embedded_slices import embed_case

    torch.set_num_threads(arguments.threads)
    encoder = load_encoder("medsam_lite")
    sets = [open_set(folder, limit=arguments.limit) for folder in arguments.data]
    cases = [(one.name, case) for one in sets for case in one.cases if case.name not in arguments.exclude]
    for dataset, case in tqdm(cases, unit="case"):
        embed_case(
            case, dataset, encoder=encoder, folder=arguments.out, limit=arguments.slices, bfloat16=arguments.bfloat16
        )


def embed_volumes(arguments: argparse.Namespace) -> None:
    """One file for each case. May be stopped and started again."""
    import torch

    from ssmsam.embeddings.embedder import Embedder
    from ssmsam.models.registry import load_encoder
    from ssmsam_research.labelled_sets import open_set
    from ssmsam_research.training.fewshot_episodes import embed_volume

    torch.set_num_threads(arguments.threads)
    embedder = Embedder(encoder=load_encoder("medsam_lite"), bfloat16=arguments.bfloat16)
    sets = [open_set(folder, limit=arguments.limit) for folder in arguments.data]
    cases = [(one.name, case) for one in sets for case in one.cases if case.name not in arguments.exclude]
    for dataset, case in tqdm(cases, unit="case"):
        embed_volume(case, dataset, embedder=embedder, folder=arguments.out, limit=arguments.slices)
    if arguments.partners:
        carry_between(cases, arguments.out, partners=arguments.partners)


def carry_between(cases: list[tuple[str, Case]], folder: Path, *, partners: int) -> None:
    """Register each embedded volume with so many of its set, and keep what their labels say of it."""
    from ssmsam.embeddings.embedder import Embedder
    from ssmsam.models.registry import load_encoder
    from ssmsam_research.training.carried_masks import carried_file, carry

    embedder, rng = Embedder(encoder=load_encoder("small")), np.random.default_rng(0)
    for dataset in dict.fromkeys(name for name, _ in cases):
        there = [case for name, case in cases if name == dataset and (folder / f"{name}-{case.name}.npz").exists()]
        order = [there[n] for n in rng.permutation(len(there))]
        for step in range(1, min(partners, len(order) - 1) + 1):
            for number, query in enumerate(tqdm(order, unit="volume", desc=dataset)):
                support = order[(number + step) % len(order)]
                path = carried_file(folder, dataset, query.name, support.name)
                if not path.exists():
                    with np.load(folder / f"{dataset}-{query.name}.npz", allow_pickle=False) as arrays:
                        positions = arrays["position"]
                    carry(query, support, positions, embedder=embedder, path=path)


def volume_head(arguments: argparse.Namespace) -> None:
    """Collect what the decoder proposes in every volume, then train. May be stopped and started again."""
    import torch

    from ssmsam.cli.command import ProgressBar
    from ssmsam.embeddings.embedder import Embedder
    from ssmsam.embeddings.store import EmbeddingStore
    from ssmsam.models.registry import load_encoder, load_target_decoder, load_volume_head
    from ssmsam_research.labelled_sets import open_set
    from ssmsam_research.training.loop import write_weights
    from ssmsam_research.training.volume_head_examples import (
        LabelledVolume,
        across,
        read_examples,
        unfamiliar,
        within,
        write_examples,
    )
    from ssmsam_research.training.volume_head_training import (
        Summaries,
        VolumeHeadConfig,
        learn_estimate,
        train_volume_head,
    )

    torch.set_num_threads(arguments.threads)
    store = EmbeddingStore(arguments.cache / "embeddings")
    embedder = Embedder(encoder=load_encoder("medsam_lite"), store=store, bfloat16=arguments.bfloat16)
    decoder, files = load_target_decoder("medsam_lite"), []
    for folder in arguments.data:
        found = [case for case in open_set(folder).cases if case.name not in arguments.exclude][: arguments.limit]
        volumes = [LabelledVolume.of(case, embedder) for case in tqdm(found, unit="volume", desc=folder.name)]
        for volume in tqdm(volumes, unit="volume", desc="proposals"):
            files.append(arguments.cache / "examples" / f"{folder.name}-{volume.name}.npz")
            if not files[-1].exists():
                rng = np.random.default_rng((arguments.seed, len(files)))
                others = [one for one in volumes if one is not volume]
                several = [one for _ in range(arguments.within) for one in within(volume, embedder, decoder, rng)]
                for _ in range(arguments.across if others else 0):
                    several += across(volume, others, embedder, decoder, rng)
                for _ in range(arguments.unfamiliar):
                    several += unfamiliar(volume, embedder, decoder, rng)
                write_examples(files[-1], several)
    examples = [one for file in files for one in read_examples(file)]
    if arguments.start:
        head = load_volume_head(arguments.start)
    else:
        familiar = [one for one in examples if not one.name.startswith("unfamiliar/")]
        with ProgressBar() as bar:
            head = train_volume_head(familiar, VolumeHeadConfig(seed=arguments.seed), progress=bar)
    learn_estimate(head, Summaries.of(head, examples))
    write_weights(arguments.out, head.state_dict(), {})
    print(f"{len(examples)} examples of {len(files)} volumes -> {arguments.out}")


def fewshot(arguments: argparse.Namespace) -> None:
    """Train with a progress bar in steps."""
    import torch
    from safetensors.torch import load_file

    from ssmsam.cli.command import ProgressBar
    from ssmsam.models.fewshot_small import TargetNetwork
    from ssmsam.models.registry import load_target_decoder
    from ssmsam.models.sam_encoder import REDUCTION, Reduction
    from ssmsam.models.weights import find_weights, weights_digest
    from ssmsam_research.training.fewshot_episodes import load_volumes
    from ssmsam_research.training.fewshot_training import FewShotTrainingConfig, begun_with_small, train_fewshot
    from ssmsam_research.training.loop import process_group

    torch.set_num_threads(arguments.threads)
    volumes = load_volumes(arguments.data, keep=lambda dataset: dataset not in arguments.without)
    small = load_target_decoder("small")
    assert isinstance(small, TargetNetwork)
    network = begun_with_small(volumes, small, Reduction.from_file(REDUCTION))
    if arguments.start:
        start = {name: part.float() for name, part in load_file(str(arguments.start)).items()}
        unknown = network.load_state_dict(start, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"{arguments.start} is of another decoder: {', '.join(unknown)}")
    config = FewShotTrainingConfig(
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        batches=arguments.batches,
    )
    if arguments.recipe:
        config = FewShotTrainingConfig.from_file(arguments.recipe)
    with process_group(), ProgressBar() as bar:
        trainer = train_fewshot(
            volumes,
            network,
            out=arguments.out,
            config=config,
            resume=arguments.resume,
            metadata={"encoder_sha256": weights_digest(find_weights("medsam_lite"))},
            progress=bar,
        )
    print(f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes -> {arguments.out}")


def correction(arguments: argparse.Namespace) -> None:
    """Answer episodes once, then train on what was read in them."""
    import json
    from dataclasses import asdict

    import torch
    from safetensors.torch import load_file

    from ssmsam.cli.command import ProgressBar
    from ssmsam.models.fewshot_fused import FusedTargetNetwork
    from ssmsam.models.weights import find_weights, weights_digest
    from ssmsam_research.training.correction_training import (
        Answers,
        CorrectionConfig,
        episodes_answered,
        train_correction,
    )
    from ssmsam_research.training.fewshot_episodes import load_volumes
    from ssmsam_research.training.loop import log_losses, write_weights

    torch.set_num_threads(arguments.threads)
    config = CorrectionConfig.from_json(json.loads(arguments.recipe.read_text()) if arguments.recipe else {})
    torch.manual_seed(config.seed)
    network = FusedTargetNetwork().eval().requires_grad_(False)
    start = {name: part.float() for name, part in load_file(str(arguments.start)).items()}
    network.load_state_dict(
        {name: part for name, part in start.items() if not name.startswith("correction.")}, strict=False
    )
    volumes = load_volumes(arguments.data, keep=lambda dataset: dataset not in arguments.without)
    with ProgressBar() as bar:
        answers = Answers.cat(list(episodes_answered(network, volumes, config, progress=bar)))
        losses = train_correction(network, answers, config, progress=bar)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".config.json").write_text(json.dumps(asdict(config), indent=1))
    for step in range(_LOGGED, len(losses) + 1, _LOGGED):
        mean = sum(losses[step - _LOGGED : step]) / _LOGGED
        log_losses(arguments.out, step, 0.0, [{"corrected": mean}])
    write_weights(arguments.out, network.state_dict(), {"encoder_sha256": weights_digest(find_weights("medsam_lite"))})
    print(f"{len(answers.logits)} queries of {len(volumes)} volumes, {config.steps} steps -> {arguments.out}")


_LOGGED = 100
"""Steps whose mean loss is a line of the log."""


def lite(arguments: argparse.Namespace) -> None:
    """Train with a progress bar in seconds."""
    import torch

    from ssmsam.cli.command import ProgressBar
    from ssmsam.models.sam_encoder import LiteMedSamEncoder
    from ssmsam.models.weights import find_weights
    from ssmsam_research.training.embedded_slices import load_slices
    from ssmsam_research.training.lite_training import LiteTrainingConfig, train_lite
    from ssmsam_research.training.loop import process_group

    torch.set_num_threads(arguments.threads)
    encoder = LiteMedSamEncoder.from_file(find_weights("medsam_lite"))
    config = LiteTrainingConfig(
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        bfloat16=arguments.bfloat16,
        seed=arguments.seed,
        batches=arguments.batches,
    )
    with process_group(), ProgressBar() as bar:
        trainer = train_lite(
            load_slices(arguments.data, keep=lambda dataset: dataset not in arguments.without),
            encoder.sam,
            out=arguments.out,
            config=config,
            encoder_sha256=encoder.weights_sha256,
            resume=arguments.resume,
            progress=bar,
        )
    print(f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes -> {arguments.out}")


def ssm(arguments: argparse.Namespace) -> None:
    """Train with a progress bar in seconds for each phase."""
    import torch
    from safetensors.torch import load_file

    from ssmsam.cli.command import ProgressBar
    from ssmsam.models.fewshot_small import TargetNetwork
    from ssmsam.models.self_sampling import SelfSamplingDecoder
    from ssmsam.models.small_encoder import SPEC, SmallEncoder, part_of
    from ssmsam_research.training.groups import GroupConfig
    from ssmsam_research.training.level_attention import LevelledDecoder
    from ssmsam_research.training.pack import load_pack
    from ssmsam_research.training.ssm_training import RatesConfig, SsmTrainingConfig, train_ssm

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    inner = TargetNetwork()
    inner.load_state_dict(part_of(load_file(str(arguments.weights)), "fewshot"))
    levels = SPEC.level_channels[len(SPEC.level_channels) - arguments.levels :]
    decoder = (
        LevelledDecoder(inner, width=SPEC.channels, channels=levels)
        if levels
        else SelfSamplingDecoder(inner, width=SPEC.channels)
    )
    if arguments.start is not None:
        earlier = load_file(str(arguments.start))
        for name in ("sampling", "mask_attention"):
            getattr(decoder, name).load_state_dict(part_of(earlier, name))
    config = SsmTrainingConfig(
        minutes=arguments.minutes,
        meta_minutes=arguments.meta_minutes,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        workers=arguments.workers,
        groups=GroupConfig(
            groups=arguments.groups,
            sides=tuple(arguments.group_sides),
            cross_share=arguments.cross_share,
            twin_share=arguments.twin_share,
            dataset_weights=json.loads(arguments.dataset_weights),
        ),
        meta=RatesConfig(learn_rates=arguments.learn_rates, seed=arguments.seed),
    )
    with ProgressBar() as progress:
        trainer = train_ssm(
            load_pack(arguments.data),
            SmallEncoder.from_file(arguments.weights),
            decoder,
            out=arguments.out,
            config=config,
            resume=arguments.resume,
            progress=progress,
        )
    print(f"{trainer.step} plain steps in {trainer.seconds / 60:.1f} minutes -> {arguments.out}")


def curve(arguments: argparse.Namespace) -> None:
    """Draw a picture of a log."""
    from ssmsam_research.figures.curves import draw_learning_curve

    print(draw_learning_curve(arguments.out, arguments.log))


def record(arguments: argparse.Namespace) -> None:
    """Tell what was written."""
    from ssmsam_research.training import record as recording

    known = recording.record(arguments.name)
    print(f"{known.name}: {known.file}, {known.bytes} bytes, sha256 {known.sha256}")


STEPS = {
    "pack": pack,
    "train": train,
    "ssm": ssm,
    "embed": embed,
    "lite": lite,
    "embed-volumes": embed_volumes,
    "fewshot": fewshot,
    "correction": correction,
    "volume-head": volume_head,
    "curve": curve,
    "record": record,
}

if __name__ == "__main__":
    sys.exit(main())
