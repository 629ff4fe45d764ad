"""The library as notebooks, the command line and the server call it: images in, masks out.

An *image* is a :class:`~ssmsam.volume.volume.Volume`, a nibabel image, a SimpleITK image, or an array (slices, rows,
columns) together with ``affine=``, see :func:`~ssmsam.volume.volume.as_volume`. Slices are counted from 0 along the
plane of work: the stored slices, unless ``plane`` says otherwise. Masks of slices are (rows, columns); pixels of a
slice are (x, y) = (column, row).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from ssmsam import __version__
from ssmsam.dicom.seg_writer import AlgorithmNotes, write_seg
from ssmsam.dicom.series import DicomSeries
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.fewshot.adapted_task import AdaptedTask, SupportCache, read_local, read_task, write_task
from ssmsam.fewshot.config import DEFAULTS, AdaptationConfig, FewShotConfig
from ssmsam.fewshot.pipeline import Prediction, adapt, segment, with_pseudo_labels
from ssmsam.fewshot.support import LabelledSlice, NothingToLearn, Support
from ssmsam.fewshot.task_checkpoint import FEWSHOT, UnusableCheckpoint, method_of, read_card
from ssmsam.interactive.propagation import Stop
from ssmsam.interactive.request import InvalidPrompt, PromptRequest
from ssmsam.interactive.session import SegmentationState, segment_2d, segment_3d
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.models.registry import DECODERS, choose_encoder, default_encoder, load_decoder, load_encoder
from ssmsam.progress import Progress, silent
from ssmsam.volume import writing
from ssmsam.volume.geometry import FILES_MM, Plane
from ssmsam.volume.volume import Volume, as_volume

_TARGET = "target"


class Example(NamedTuple):
    """One labelled slice; a plain tuple ``(image, slice, mask)`` does as well.

    ``mask`` is (rows, columns), anything but 0 inside; or an image on the same grid, of which that slice is taken. An
    empty one says that the label is not on this slice. ``name`` is how the user calls the image.
    """

    image: Any
    slice: int
    mask: Any
    name: str = ""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one image.

    Attributes:
        label_map: the labels' numbers, 0 elsewhere, on the image's own grid. Where labels overlap, the more certain one
            has the voxel. Ready for :func:`write_volume` and :func:`write_dicom_seg`.
        numbers: label -> its number in ``label_map``.
        slices: (n,) the slices that were looked at.
        presence: label -> (n,) the probability in [0, 1] that the label is on each of them.
        uncertainty: label -> (n,) the expected loss of Dice on each of them, in [0, 1].
        dice_estimate: label -> the Dice in [0, 1] that is expected of its mask on the slices that nobody annotated.
    """

    label_map: Volume
    numbers: Mapping[str, int]
    slices: np.ndarray
    presence: Mapping[str, np.ndarray]
    uncertainty: Mapping[str, np.ndarray]
    dice_estimate: Mapping[str, float]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.numbers)

    @cached_property
    def mask(self) -> Mapping[str, np.ndarray]:
        """Label -> (slices, rows, columns) bool. No voxel is in two of them."""
        return {label: self.label_map.array == number for label, number in self.numbers.items()}


class _Segmenter:
    """An encoder with its store."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return self.embedder.encoder.spec.name

    @property
    def weights_sha256(self) -> str:
        """Of the encoder's weights."""
        return self.embedder.encoder.weights_sha256

    def embed(
        self,
        image: Any,
        *,
        plane: str | None = None,
        affine: np.ndarray | None = None,
        progress: Progress = silent,
    ) -> int:
        """Send all slices of an image through the encoder now, so that later answers are quick.

        Returns how many that were: those in the store or in memory are left out. Finished ones stay when it is stopped.
        """
        volume = as_volume(image, affine=affine)
        before = self.embedder.encoded
        self.embedder.open(volume, plane=Plane.named(plane, volume.grid)).embed(progress=progress)
        return self.embedder.encoded - before


class FewShotSegmenter(_Segmenter):
    """Learns a target from a few labelled slices and finds it in whole volumes.

    Every slice goes through the image encoder once; ``from_pretrained(store=FOLDER)`` keeps that on disk.

    Example:
        A bright ball in one image is learned from two slices, and found in another image.

        >>> import numpy as np
        >>> from ssmsam import FewShotSegmenter, as_volume
        >>> def scan(row, column, *, mm=np.diag([2.0, 2.0, 5.0, 1.0])):
        ...     z, y, x = np.indices((9, 64, 64))
        ...     ball = (z - 4) ** 2 * 6 + (y - row) ** 2 + (x - column) ** 2 < 100
        ...     return as_volume(np.where(ball, 200, 60).astype("uint8"), affine=mm), ball
        >>> image, ball = scan(30, 28)
        >>> model = FewShotSegmenter.from_pretrained("small")
        >>> task = model.adapt({"ball": [(image, 3, ball[3]), (image, 5, ball[5])]})
        >>> task.labels
        ('ball',)
        >>> other, truth = scan(34, 36)
        >>> prediction = task.segment(other)
        >>> found = prediction.mask["ball"]
        >>> found.shape, bool((found & truth).sum() > 0.8 * truth.sum())
        ((9, 64, 64), True)
        >>> prediction.presence["ball"].shape, 0 <= prediction.dice_estimate["ball"] <= 1
        ((9,), True)
    """

    def __init__(
        self,
        embedder: Embedder,
        decoder: TargetDecoder,
        *,
        method: str = FEWSHOT,
        support_cache: SupportCache | None = None,
    ) -> None:
        """``decoder`` is the one of ``method`` that belongs to the embedder's encoder, as it came with its weights.
        Most callers want :meth:`from_pretrained`."""
        super().__init__(embedder)
        self.decoder = decoder
        self.method = method
        self.support_cache = support_cache

    @classmethod
    def from_pretrained(
        cls,
        encoder: str | None = None,
        *,
        method: str = FEWSHOT,
        device: str | None = None,
        weights: str | os.PathLike[str] | None = None,
        download: bool = False,
        allow_unverified: bool = False,
        store: EmbeddingStore | str | os.PathLike[str] | None = None,
        support_cache: str | os.PathLike[str] | None = None,
    ) -> FewShotSegmenter:
        """Load an encoder and the few-shot decoder that belongs to it.

        Args:
            encoder: "small" (comes with this package), "medsam_lite", "sam_vit_b", ... The default is that of the
                environment variable SSMSAM_ENCODER, else the best one whose weights are on this machine.
            method: "fewshot", or "ssm_sam".
            device: of torch, a GPU by default where there is one.
            weights: a folder to look for weights in first.
            download: fetch weights that are missing. Nothing is fetched otherwise.
            allow_unverified: accept weights of your own.
            store: a folder for embeddings, of any number of images and processes, at most 20 GB; or an EmbeddingStore.
                Without one they stay in memory.
            support_cache: a folder for the labelled slices of saved tasks; without one a saved task is its file alone.

        Raises:
            ValueError: for an unknown encoder or method.
            MissingWeights: the weights are not on this machine; the message says how to get them.
            CorruptWeights: they are damaged.
        """
        if method not in DECODERS:
            raise ValueError(f"unknown method {method!r}; valid names: {', '.join(DECODERS)}")
        source = {"device": device, "weights": weights, "download": download, "allow_unverified": allow_unverified}
        embedder = load_embedder(encoder, store=store, **source)
        decoder = DECODERS[method](embedder.encoder.spec.name, **_wanted(**source))
        cache = None if support_cache is None else SupportCache(Path(support_cache))
        return cls(embedder, decoder, method=method, support_cache=cache)

    def adapt(
        self,
        examples: Mapping[str, Iterable[Example | tuple[Any, int, Any]]],
        *,
        plane: str | None = None,
        affine: np.ndarray | None = None,
        numbers: Mapping[str, int] | None = None,
        steps: int | None = None,
        budget_s: float = DEFAULTS.adaptation.budget_s,
        seed: int = DEFAULTS.adaptation.seed,
        progress: Progress = silent,
    ) -> SegmentationTask:
        """Learn labels from labelled slices.

        Args:
            examples: label -> its slices as ``(image, slice, mask)``, see :class:`Example`. They may lie in several
                images. Give the outermost slices of an organ, or a slice beyond them with an empty mask, if you can.
            plane: "axial", "coronal" or "sagittal"; None for the slices as they are stored.
            affine: of images that are arrays, one for all of them. For several, use :func:`as_volume` on each.
            numbers: label -> its number in label maps; 1, 2, ... by default.
            steps: gradient steps of adaptation. None leaves it to the decoder: none for one that was trained to be
                prompted by slices, whose answers come from a closed form.
            budget_s: most seconds for these steps; fewer are made where the time is short.
            seed: of the steps.
            progress: called as ``progress(phase, done, total)``; ``print`` does. Raise Cancelled in it to stop.

        Raises:
            NothingToLearn: a label is on none of its slices.
            ValueError: a slice or a mask does not fit its image, or two masks of one slice contradict each other.
        """
        support = support_of(examples, self.embedder, plane=plane, affine=affine, progress=progress)
        config = self._config(steps, budget_s, seed)
        adapted = adapt(support, self.embedder, self.decoder, pseudo_labels=False, config=config, progress=progress)
        given = dict(numbers or {label: number for number, label in enumerate(examples, 1)})
        card = {**adapted.card, "method": self.method, "numbers": given, "plane": plane}
        return SegmentationTask(self, replace(adapted, card=card), support)

    def load_task(self, path: str | os.PathLike[str]) -> SegmentationTask:
        """A task that :meth:`SegmentationTask.save` or a server wrote.

        Raises UnusableCheckpoint, with the next step, for a file of other weights or another method, and for what is no
        task checkpoint; FileNotFoundError where there is none.
        """
        path = Path(path)
        made_by = method_of(read_card(path))
        if made_by != self.method:
            raise UnusableCheckpoint(
                f"{path.name} is a task of {made_by}, not of {self.method}: load it with method={made_by!r}"
            )
        cache = self.support_cache or SupportCache(path.parent / ".none")  # where nothing is
        adapted = read_task(path, base=self.decoder, weights_sha256=self.weights_sha256, cache=cache)
        return SegmentationTask(self, adapted, {})

    def _config(self, steps: int | None, budget_s: float, seed: int) -> FewShotConfig:
        """A decoder that knows no organ yet says little before it has adapted."""
        usual = 0 if self.method == FEWSHOT and self.decoder.pretrained else AdaptationConfig.steps
        chosen = usual if steps is None else steps
        adaptation = replace(DEFAULTS.adaptation, steps=chosen, budget_s=budget_s, seed=seed)
        return replace(DEFAULTS, adaptation=adaptation)


class SegmentationTask:
    """Labels that were learned from a few slices. Made by :meth:`FewShotSegmenter.adapt` and ``load_task``."""

    def __init__(self, segmenter: FewShotSegmenter, adapted: AdaptedTask, support: Support) -> None:
        self._segmenter = segmenter
        self._adapted = adapted
        self._support = support

    @property
    def labels(self) -> tuple[str, ...]:
        return self._adapted.labels

    @property
    def numbers(self) -> dict[str, int]:
        """Label -> its number in label maps."""
        return dict(self.card.get("numbers") or {label: number for number, label in enumerate(self.labels, 1)})

    @property
    def learned_from(self) -> dict[str, int]:
        """Label -> how many slices were labelled."""
        return self._adapted.learned_from

    @property
    def dice_estimate(self) -> dict[str, float]:
        """Label -> Dice in [0, 1] on labelled slices, each answered by the others; without labels whose slices are
        too few for that."""
        return {label: float(one["after"]) for label, one in self.card["dice_estimate"].items()}

    @property
    def card(self) -> Mapping[str, Any]:
        """How it was made: labels, settings, encoder, estimates, date. Plain JSON, read only."""
        return MappingProxyType(dict(self._adapted.card))

    @property
    def exact(self) -> bool:
        """Whether the labelled slices themselves are at hand. From a file alone, what was learned stands for them, and
        masks are less exact."""
        return not self._adapted.summarised

    def segment(
        self,
        image: Any,
        *,
        labels: Sequence[str] | None = None,
        slices: Sequence[int] | None = None,
        affine: np.ndarray | None = None,
        plane: str | None = None,
        progress: Progress = silent,
    ) -> Segmentation:
        """Find the labels in an image. What was annotated in this very image stays as it is, pixel by pixel.

        Args:
            image: any image, also one of those that were learned from.
            labels: only these; all by default.
            slices: only these slices; all by default.
            affine: where the image is an array.
            plane: None for the plane of the examples.
            progress: as for :meth:`FewShotSegmenter.adapt`.

        Raises:
            ValueError: for what is no image, for unknown labels, and for slices outside the image.
        """
        unknown = [label for label in labels or () if label not in self.labels]
        if unknown:
            raise ValueError(f"this task has no label {', '.join(unknown)}; it has {', '.join(self.labels)}")
        volume = as_volume(image, affine=affine)
        work = Plane.named(plane or self.card.get("plane"), volume.grid)
        query = self._segmenter.embedder.open(volume, plane=work)
        self._complete(
            [label for label in self._adapted.lacks(query.key.digest) if labels is None or label in labels], progress
        )
        found = segment(query, self._adapted, labels=labels, slices=slices, support=self._support, progress=progress)
        return _segmentation(found, volume, self.numbers)

    def save(self, path: str | os.PathLike[str], *, progress: Progress = silent) -> Path:
        """Write what was learned as one file of a few MB without a voxel, a mask or an id: it may be given away.

        Where the segmenter has a ``support_cache``, ``NAME.json`` and that folder keep the labelled slices for this
        machine. Raises ValueError for a name that does not end in .safetensors.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path.name}: the name of a task's file ends in .safetensors, as in liver.safetensors")
        self._complete(self.labels, progress)
        cache, base = self._segmenter.support_cache, self._segmenter.decoder
        if cache is None:
            self._adapted.checkpoint(base).save(path)
            if read_local(path):  # it belongs to the file that was there before
                path.with_suffix(".json").unlink()
        else:
            write_task(path, self._adapted, base=base, cache=cache)
        return path

    def _complete(self, labels: Sequence[str], progress: Progress) -> None:
        self._adapted = with_pseudo_labels(self._adapted, self._support, labels=labels, progress=progress)


@dataclass(frozen=True, eq=False)
class PromptMask:
    """The answer to prompts on one slice.

    Attributes:
        mask: (rows, columns) bool. Every foreground point is inside, every background point outside.
        quality: the predicted IoU in [0, 1].
        corrected: whether the decoder's mask had to be changed to keep to the points.
    """

    mask: np.ndarray
    quality: float
    corrected: bool


@dataclass(frozen=True, eq=False)
class Propagated:
    """The answer to prompts, propagated through the volume.

    Attributes:
        mask: (slices, rows, columns) bool, on the image's own grid.
        label_map: the same as a volume, 1 inside, for :func:`write_volume`.
        stops: where and why propagation ended.
    """

    mask: np.ndarray
    label_map: Volume
    stops: tuple[Stop, ...] = field(default=())


class PromptSegmenter(_Segmenter):
    """Clicks and boxes become masks, of a slice or of the whole volume; in Segment Anything's words.

    Example:
        >>> import numpy as np
        >>> from ssmsam import PromptSegmenter
        >>> z, y, x = np.indices((7, 64, 64))
        >>> ball = (z - 3) ** 2 * 9 + (y - 30) ** 2 + (x - 28) ** 2 < 144
        >>> model = PromptSegmenter.from_pretrained("small")
        >>> model.set_image(np.where(ball, 200, 60).astype("uint8"), affine=np.diag([2.0, 2.0, 5.0, 1.0]))
        >>> answer = model.predict(3, points=[(28, 30)], labels=[1])
        >>> answer.mask.shape, bool(answer.mask[30, 28])
        ((64, 64), True)
        >>> whole = model.propagate()
        >>> whole.mask.shape, bool(whole.mask[2, 30, 28])
        ((7, 64, 64), True)
    """

    def __init__(self, embedder: Embedder, decoder: PromptDecoder) -> None:
        """``decoder`` belongs to the embedder's encoder. Most callers want :meth:`from_pretrained`."""
        super().__init__(embedder)
        self.decoder = decoder
        self._image: tuple[Volume, VolumeEmbeddings] | None = None
        self._state = SegmentationState()

    @classmethod
    def from_pretrained(
        cls,
        encoder: str | None = None,
        *,
        device: str | None = None,
        weights: str | os.PathLike[str] | None = None,
        download: bool = False,
        allow_unverified: bool = False,
        store: EmbeddingStore | str | os.PathLike[str] | None = None,
    ) -> PromptSegmenter:
        """Load an encoder and its prompted decoder. Arguments and errors are those of
        :meth:`FewShotSegmenter.from_pretrained`."""
        source = {"device": device, "weights": weights, "download": download, "allow_unverified": allow_unverified}
        embedder = load_embedder(encoder, store=store, **source)  # before the decoder, which shares SAM's network
        return cls(embedder, load_decoder(embedder.encoder.spec.name, **_wanted(**source)))

    def set_image(self, image: Any, *, plane: str | None = None, affine: np.ndarray | None = None) -> None:
        """Work on this image from now on; its slices are encoded when they are first prompted.

        ``plane`` is "axial", "coronal" or "sagittal", None for the stored slices. Raises ValueError for what is no
        image.
        """
        volume = as_volume(image, affine=affine)
        self._image = volume, self.embedder.open(volume, plane=Plane.named(plane, volume.grid))
        self.reset_prompts()

    def reset_prompts(self) -> None:
        """Forget all prompts and masks: the next ones are of another object of the same image."""
        self._state = SegmentationState()

    def predict(
        self,
        slice: int,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        *,
        progress: Progress = silent,
    ) -> PromptMask:
        """Segment one slice.

        Give **all** points of the slice each time. When they only add to those of the call before, the last answer is
        corrected; when one was moved or left out, it is made anew.

        Args:
            slice: its number, from 0 along the plane of work.
            points: (N, 2) as (x, y) = (column, row) in pixels of the slice.
            labels: (N,) 1 for a point inside the object, 0 for one outside it; all inside by default.
            box: (x0, y0, x1, y1), both ends inside.
            progress: as for :meth:`FewShotSegmenter.adapt`.

        Raises:
            RuntimeError: no image was set.
            InvalidPrompt: no prompt, points outside the slice, only background points and nothing to correct, or
                nothing found in the box. A ValueError; the message says what to do.
        """
        volume, embeddings = self._opened()
        request = _request(slice, points, labels, box, volume=volume, plane=embeddings.plane)
        answer = segment_2d(request, embeddings, self.decoder, self._state, progress=progress)
        key = str(int(slice))
        return PromptMask(
            mask=embeddings.plane.stack(answer.mask)[int(slice)] != 0,
            quality=float(answer.details["quality"][key]),
            corrected=int(slice) in answer.details["corrected"],
        )

    def propagate(
        self,
        *,
        slices: tuple[int, int] | None = None,
        max_mm: float | None = None,
        progress: Progress = silent,
    ) -> Propagated:
        """Carry the prompted slices through the volume, in both directions.

        Args:
            slices: first and last slice that may be reached.
            max_mm: how far from a prompted slice it may go.
            progress: as for :meth:`FewShotSegmenter.adapt`.

        Raises:
            RuntimeError: no image was set.
            InvalidPrompt: nothing was prompted yet.
        """
        volume, embeddings = self._opened()
        request = PromptRequest.of(
            grid=volume.grid,
            plane=embeddings.plane,
            dimension=3,
            z_range=slices,
            max_mm=max_mm or 0.0,
            label=_TARGET,
        )
        request = replace(request, slices=dict(self._state.prompts))
        answer = segment_3d(request, embeddings, self.decoder, self._state, progress=progress)
        stops = tuple(Stop(**stop) for stop in answer.details["stops"])
        return Propagated(answer.mask != 0, volume.with_array(answer.mask), stops)

    def _opened(self) -> tuple[Volume, VolumeEmbeddings]:
        if self._image is None:
            raise RuntimeError("no image was set: call set_image(volume) first")
        return self._image


def support_of(
    examples: Mapping[str, Iterable[Example | tuple[Any, int, Any]]],
    embedder: Embedder,
    *,
    plane: str | None = None,
    affine: np.ndarray | None = None,
    progress: Progress = silent,
) -> Support:
    """The labelled slices of :meth:`FewShotSegmenter.adapt`, checked and embedded. Arguments and errors are its own."""
    opened: dict[int, tuple[Any, VolumeEmbeddings]] = {}  # with the image: an id is good only as long as it lives
    support: dict[str, dict[tuple[str, int], LabelledSlice]] = {}
    wanted: dict[VolumeEmbeddings, set[int]] = {}
    for label, given in examples.items():
        slices = support.setdefault(label, {})
        for example in map(_as_example, given):
            image = example.image
            if id(image) not in opened:
                volume = as_volume(image, affine=_for_array(image, affine))
                opened[id(image)] = image, embedder.open(volume, plane=Plane.named(plane, volume.grid))
            one = _labelled_slice(opened[id(image)][1], example)
            if not np.array_equal(slices.setdefault((one.volume, one.index), one).mask, one.mask):
                where = f" of {one.image}" if one.image else ""
                raise ValueError(
                    f"two masks draw {label} differently on slice {one.index}{where}: give each slice once"
                )
            wanted.setdefault(one.embeddings, set()).add(one.index)
    if not support:
        raise NothingToLearn('there are no labelled slices: give a few, as in {"liver": [(ct, 31, mask31)]}')
    for embeddings, indices in wanted.items():
        embeddings.embed(sorted(indices), progress=progress)
    return {label: list(slices.values()) for label, slices in support.items()}


def task_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a task's file says of itself, without its tensors: labels, method, encoder, settings, estimates, date.

    Raises UnusableCheckpoint for what is no task checkpoint, and FileNotFoundError.
    """
    card = read_card(Path(path))
    return {**card, "method": method_of(card)}


def write_volume(image: Any, path: str | os.PathLike[str], *, affine: np.ndarray | None = None) -> Path:
    """Write an image, or the label map of a :class:`Segmentation`, as .nii, .nii.gz or .nrrd on its own grid.

    The file appears whole or not at all. Raises ValueError for another suffix and for what is no image.

    Example:
        >>> import numpy as np, tempfile
        >>> from ssmsam import read_volume, write_volume
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = write_volume(np.ones((3, 4, 5), "int16"), folder.name + "/ones.nii.gz", affine=np.eye(4))
        >>> read_volume(path).shape
        (3, 4, 5)
    """
    image = image.label_map if isinstance(image, Segmentation | Propagated) else image
    writing.write_volume(as_volume(image, affine=affine), path)
    return Path(path)


def write_dicom_seg(
    mask: Any,
    series: DicomSeries | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    labels: Mapping[str, int] | None = None,
    algorithm: AlgorithmNotes | None = None,
) -> Path:
    """Write a mask as DICOM SEG of the series that it was drawn on; it is read back and compared before it appears.

    Args:
        mask: a :class:`Segmentation`; or a label map on the grid of the series, as an image, which needs ``labels``.
        series: the folder that holds the DICOM files of the series.
        path: the file to write.
        labels: label -> its number in ``mask``; those of a :class:`Segmentation` by default.
        algorithm: how the mask came about; by default found by this library, without a person's correction.

    Raises:
        EmptySegmentation: the mask has no voxel of any label.
        ValueError: the mask is not on the grid of the series, or holds numbers that no label has.
    """
    if isinstance(mask, Segmentation):
        mask, labels = mask.label_map, labels or mask.numbers
    if not labels:
        raise ValueError('a label map does not say what its numbers mean: give labels=, as in {"liver": 1}')
    algorithm = algorithm or AlgorithmNotes(name="ssmsam", version=__version__, kind="AUTOMATIC")
    return write_seg(as_volume(mask), labels, series, path, algorithm=algorithm)


def load_embedder(
    encoder: str | None = None,
    *,
    store: EmbeddingStore | str | os.PathLike[str] | None = None,
    **source: Any,
) -> Embedder:
    """An encoder with its store. Arguments and errors are those of :meth:`FewShotSegmenter.from_pretrained`."""
    wanted = _wanted(**source)
    name = choose_encoder(encoder or default_encoder(), folder=wanted["folder"])
    if store is not None and not isinstance(store, EmbeddingStore):
        store = EmbeddingStore(Path(store))
    return Embedder(encoder=load_encoder(name, **wanted), store=store)


def _wanted(*, device: Any = None, weights: Any = None, **source: Any) -> dict[str, Any]:
    """What every loader of the registries takes."""
    folder = None if weights is None else Path(weights)
    return {"folder": folder, "device": device or ("cuda" if torch.cuda.is_available() else "cpu"), **source}


def _as_example(given: Any) -> Example:
    if isinstance(given, tuple | list) and len(given) in (3, 4):
        return Example(*given)
    raise ValueError(f"a labelled slice is (image, slice, mask), as in (ct, 31, mask31), got {type(given).__name__}")


def _for_array(image: Any, affine: np.ndarray | None) -> np.ndarray | None:
    return affine if isinstance(image, np.ndarray) else None


def _labelled_slice(embeddings: VolumeEmbeddings, example: Example) -> LabelledSlice:
    index, count = int(example.slice), embeddings.count
    if not 0 <= index < count:
        raise ValueError(f"slice {index} is not in its image, which has the slices 0 to {count - 1} in this plane")
    mask = _slice_of(example.mask, index, embeddings)
    height, width = embeddings.plane.slice_shape(embeddings.grid)
    if mask.shape != (height, width):
        turned = ": transpose it" if mask.shape == (width, height) else ""
        raise ValueError(
            f"the mask of slice {index} is {mask.shape}, its slice (rows, columns) {(height, width)}{turned}"
        )
    return LabelledSlice(embeddings, index, np.ascontiguousarray(mask != 0), image=example.name)


def _slice_of(mask: Any, index: int, embeddings: VolumeEmbeddings) -> np.ndarray:
    if not hasattr(mask, "affine") and not hasattr(mask, "GetSpacing") and np.ndim(mask) == 2:
        return np.asarray(mask)
    whole = as_volume(mask, affine=_for_array(mask, embeddings.grid.affine))
    if not whole.grid.matches(embeddings.grid, tolerance_mm=FILES_MM):
        raise ValueError(
            f"the mask of slice {index} {whole.shape} is not on the grid of its image {embeddings.grid.shape}: "
            "give the slice alone as (rows, columns), or resample the mask to the image"
        )
    return embeddings.plane.stack(whole.array)[index]


def _segmentation(found: Prediction, volume: Volume, numbers: Mapping[str, int]) -> Segmentation:
    table = np.array([0, *(numbers[label] for label in found.labels)])
    label_map = volume.with_array(table.astype(np.min_scalar_type(table.max()))[found.mask])
    return Segmentation(
        label_map=label_map,
        numbers={label: numbers[label] for label in found.labels},
        slices=found.slices,
        presence=dict(zip(found.labels, found.presence, strict=True)),
        uncertainty=dict(zip(found.labels, found.uncertainty, strict=True)),
        dice_estimate=dict(found.dice),
    )


def _request(slice: int, points: Any, labels: Any, box: Any, *, volume: Volume, plane: Plane) -> PromptRequest:
    """Prompts on one slice. Raises InvalidPrompt."""
    xy = np.reshape(np.asarray([] if points is None else points, dtype=np.float64), (-1, 2))
    inside = np.ones(len(xy), dtype=bool) if labels is None else np.asarray(labels).reshape(-1).astype(bool)
    if len(inside) != len(xy):
        raise InvalidPrompt(f"{len(xy)} points have {len(inside)} labels: give one for each, 1 inside or 0 outside")
    voxels, corners = plane.join(np.full(len(xy), slice), xy), None
    if box is not None:
        both = plane.join(np.full(2, slice), np.reshape(np.asarray(box, dtype=np.float64), (2, 2)))
        corners = (both.min(axis=0), both.max(axis=0))
    return PromptRequest.of(
        grid=volume.grid,
        plane=plane,
        dimension=2,
        positive=voxels[inside],
        negative=voxels[~inside],
        newest=voxels[-1:],
        box=corners,
        label=_TARGET,
    )
