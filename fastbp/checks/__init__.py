"""Checks of gradients against numerical derivatives that know their own error, and reports."""

from ._compare import GradCheck
from ._gradient import check_grad
from ._report import GradientReport, LayerReport, gradient_report
from ._vjp import check_vjp

__all__ = [
    "GradCheck",
    "GradientReport",
    "LayerReport",
    "check_grad",
    "check_vjp",
    "gradient_report",
]
