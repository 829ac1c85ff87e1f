"""Checks of gradients against numerical derivatives that know their own error."""

from ._compare import GradCheck
from ._gradient import check_grad
from ._vjp import check_vjp

__all__ = ["GradCheck", "check_grad", "check_vjp"]
