"""Checks of gradients against numerical derivatives with error estimates, and gradient reports."""

from .comparison import GradCheck
from .gradient import check_grad
from .report import GradientReport, LayerReport, gradient_report
from .vjp import check_vjp

__all__ = [
    "GradCheck",
    "GradientReport",
    "LayerReport",
    "check_grad",
    "check_vjp",
    "gradient_report",
]
