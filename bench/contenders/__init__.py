"""Everything that can be measured, by name. The heavy imports happen in `prepare`."""

from __future__ import annotations

from contenders.base import Contender
from contenders.gradstep_fit import GradstepFit
from contenders.jax_scan import JaxScan
from contenders.numpy_by_hand import NumpyAvx512, NumpyByHand
from contenders.pytorch import PytorchCompiled, PytorchEager
from contenders.scikit_learn import ScikitLearn

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        GradstepFit("cpp"),
        JaxScan(),
        PytorchEager(),
        PytorchCompiled(),
        NumpyByHand(),
        ScikitLearn(),
        GradstepFit("numba"),
        GradstepFit("numpy"),
        NumpyAvx512(),
    )
}
"""Those that must be compared most closely come first: they take turns where not all fit into memory."""
