"""Registrations that can be measured beside ours. A method gets two coarse volumes with cells of one size and says
where each cell of the first is in the second, as indices (3, D, H, W): (slice, row, column).

Libraries that need a start, because they expect volumes that overlap, get that of ours (:mod:`~..alignment`) or an
affine registration by SimpleITK; each is named so. Settings are those the libraries' makers give for new data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ssmsam.registration.register import (
    CoarseVolume,
    aligned,
    features_of,
    indices,
    lattice,
    one_direction,
    places_of,
    sampled,
)

Method = Callable[[CoarseVolume, CoarseVolume], torch.Tensor]
PACKAGES = ("torch", "SimpleITK", "convexadam", "itk-elastix")


def ours(fixed: CoarseVolume, moving: CoarseVolume) -> torch.Tensor:
    """One direction of what the product computes; it needs both."""
    field = one_direction(fixed, moving, features_of(fixed.values), features_of(moving.values))
    return field.at(lattice(field.shape, 1))


def our_start(fixed: CoarseVolume, moving: CoarseVolume) -> torch.Tensor:
    """The bodies' boxes laid over each other at the best offset along the body."""
    here, there = (features_of(one.values) for one in (fixed, moving))
    field = aligned(fixed.values, moving.values, here, there)
    return field.at(lattice(field.shape, 1))


def sitk_affine(fixed: CoarseVolume, moving: CoarseVolume) -> torch.Tensor:
    """SimpleITK: centred by geometry, affine, mutual information of a fifth of the cells, three resolutions."""
    import SimpleITK as sitk

    here, there = _sitk_image(fixed), _sitk_image(moving)
    start = sitk.CenteredTransformInitializer(
        here, there, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = _sitk_method((4, 2, 1), sampling=0.2)
    method.SetInitialTransform(start, inPlace=False)
    method.SetOptimizerAsGradientDescent(1.0, 100, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    return _sitk_places(method.Execute(here, there), fixed, moving)


def sitk_ffd(fixed: CoarseVolume, moving: CoarseVolume, *, start: Method, cells: int = 10) -> torch.Tensor:
    """SimpleITK: free-form deformation by cubic B-splines with a node every ``cells`` cells, mutual information on
    half the resolution, L-BFGS-B."""
    import SimpleITK as sitk

    places = start(fixed, moving)
    here, there = _sitk_image(fixed), _sitk_image(_warped(fixed, moving, places))
    method = _sitk_method((2,), sampling=0.2)
    nodes = [max(1, round(n / cells)) for n in here.GetSize()]
    method.SetInitialTransform(sitk.BSplineTransformInitializer(here, nodes, 3), inPlace=False)
    method.SetOptimizerAsLBFGSB(1e-5, 30, 5, 1000, 1e7)
    return _after(places, _sitk_places(method.Execute(here, there), fixed, fixed))


def sitk_demons(fixed: CoarseVolume, moving: CoarseVolume, *, start: Method) -> torch.Tensor:
    """SimpleITK: histograms matched, diffeomorphic demons on three resolutions, the field smoothed by 1.5 cells."""
    import SimpleITK as sitk

    places = start(fixed, moving)
    field: Any = None
    here = _sitk_image(fixed)
    there = sitk.HistogramMatching(_sitk_image(_warped(fixed, moving, places)), here, 128, 10, True)
    for factor, rounds in ((4, 40), (2, 30), (1, 20)):
        one, other = (_smaller(image, factor) for image in (here, there))
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(rounds)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(1.5)
        field = demons.Execute(one, other) if field is None else demons.Execute(one, other, sitk.Resample(field, one))
    moved = sitk.GetArrayFromImage(sitk.Resample(field, here))
    return _after(places, _moved(moved, fixed, fixed))


def convexadam(fixed: CoarseVolume, moving: CoarseVolume, *, start: Method) -> torch.Tensor:
    """convexAdam with MIND features and the settings its authors give as defaults."""
    from convexAdam.convex_adam_MIND import convex_adam_pt

    places = start(fixed, moving)
    with torch.enable_grad():
        moved = convex_adam_pt(
            fixed.values,
            _warped(fixed, moving, places).values,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
    return _after(places, lattice(fixed.grid.shape, 1) + torch.from_numpy(moved).float().permute(3, 0, 1, 2))


def elastix(fixed: CoarseVolume, moving: CoarseVolume) -> torch.Tensor:
    """elastix' default maps, affine and B-splines (mutual information, adaptive stochastic gradient descent, bending
    energy), three resolutions, a node every four cells; centred by geometry."""
    import itk

    itk.set_nthreads(1)
    parameters = itk.ParameterObject.New()
    for kind in ("affine", "bspline"):
        found = parameters.GetDefaultParameterMap(kind, 3, 4 * fixed.cell_mm)
        found["AutomaticTransformInitialization"] = ("true",)
        found["AutomaticTransformInitializationMethod"] = ("GeometricalCenter",)
        found["RequiredRatioOfValidSamples"] = ("0.05",)  # two patients may share little of the body
        found["WriteResultImage"] = ("false",)
        found["RandomSeed"] = ("1",)
        parameters.AddParameterMap(found)
    here, there = (_itk_image(itk, one) for one in (fixed, moving))
    registration = itk.ElastixRegistrationMethod.New(
        here, there, parameter_object=parameters, log_to_console=False, number_of_threads=1
    )
    registration.UpdateLargestPossibleRegion()
    found = registration.GetTransformParameterObject()
    with TemporaryDirectory() as folder:  # the filter writes its field to a file too
        transformix = itk.TransformixFilter.New(there, transform_parameter_object=found)
        transformix.SetComputeDeformationField(True)
        transformix.SetOutputDirectory(folder)
        transformix.UpdateLargestPossibleRegion()
        moved = itk.array_from_image(transformix.GetOutputDeformationField())
    return _moved(moved, fixed, moving)


METHODS: dict[str, Method] = {
    "ours": ours,
    "our start": our_start,
    "SimpleITK affine": sitk_affine,
    "our start, SimpleITK B-splines": partial(sitk_ffd, start=our_start),
    "our start, SimpleITK demons": partial(sitk_demons, start=our_start),
    "SimpleITK affine, convexAdam": partial(convexadam, start=sitk_affine),
    "our start, convexAdam": partial(convexadam, start=our_start),
    "elastix": elastix,
}
_NEEDED = {
    "SimpleITK affine, convexAdam": ("convexAdam", "convexadam"),
    "our start, convexAdam": ("convexAdam", "convexadam"),
    "elastix": ("itk", "itk-elastix"),
}


def available(name: str) -> str:
    """Why a method of :data:`METHODS` cannot run here, "" when it can."""
    module, package = _NEEDED.get(name, ("", ""))
    there = not module or find_spec(module) is not None
    if there and module == "itk":
        import itk

        there = hasattr(itk, "ElastixRegistrationMethod")
    return "" if there else f"not installed; pip install {package}"


def _warped(fixed: CoarseVolume, moving: CoarseVolume, places: torch.Tensor) -> CoarseVolume:
    return CoarseVolume(sampled(moving.values[None], places, outside=0.0)[0], fixed.grid)


def _after(places: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """``places`` (3, D, H, W) of cells that lie at ``moved`` (3, D, H, W); beyond the border they go on evenly."""
    return moved + sampled(places - lattice((places.shape[1], places.shape[2], places.shape[3]), 1), moved)


def _moved(displacement: np.ndarray, fixed: CoarseVolume, moving: CoarseVolume) -> torch.Tensor:
    """A displacement (D, H, W, 3) in LPS mm of the fixed volume's cells -> indices of the moving one."""
    lps = fixed.grid.to_lps(indices(fixed.grid)) + displacement.reshape(-1, 3)
    return places_of(moving.grid.to_ijk(lps), fixed.grid.shape)


def _sitk_image(volume: CoarseVolume) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(volume.values.numpy())
    image.SetSpacing([volume.cell_mm] * 3)
    image.SetOrigin([float(mm) for mm in volume.grid.affine[:3, 3]])
    return image


def _itk_image(itk: Any, volume: CoarseVolume) -> Any:
    image = itk.image_from_array(np.ascontiguousarray(volume.values.numpy()))
    image.SetSpacing([volume.cell_mm] * 3)
    image.SetOrigin([float(mm) for mm in volume.grid.affine[:3, 3]])
    return image


def _sitk_method(shrink: tuple[int, ...], *, sampling: float) -> Any:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(sampling, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel([factor / 2 if factor > 1 else 0 for factor in shrink])
    return method


def _sitk_places(transform: Any, fixed: CoarseVolume, moving: CoarseVolume) -> torch.Tensor:
    import SimpleITK as sitk

    sampler = sitk.TransformToDisplacementFieldFilter()
    sampler.SetReferenceImage(_sitk_image(fixed))
    return _moved(sitk.GetArrayFromImage(sampler.Execute(transform)), fixed, moving)


def _smaller(image: Any, factor: int) -> Any:
    import SimpleITK as sitk

    if factor == 1:
        return image
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, factor * image.GetSpacing()[0] / 2), [factor] * 3)
