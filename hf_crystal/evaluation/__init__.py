"""How good predictions and generated crystals are, each figure with its parts and its protocol."""

from hf_crystal.evaluation.regression import RegressionMetrics, TargetMetrics, regression_metrics

__all__ = ["RegressionMetrics", "TargetMetrics", "regression_metrics"]
