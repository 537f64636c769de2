"""The statistics of comparison, under one name. Each idea has its own file; this one is where to import from."""

from __future__ import annotations

from experiments.statistics_bootstrap import (
    auc_statistic,
    bootstrap_interval,
    interval_of,
    mean_statistic,
    patient_weights,
    two_sided_p,
)
from experiments.statistics_calibration import (
    BrierParts,
    brier_decomposition,
    brier_score,
    net_benefit,
    reliability_curve,
)
from experiments.statistics_calibration_line import Calibration, calibration_line
from experiments.statistics_operating import (
    sensitivity_at_specificity,
    sensitivity_at_specificity_statistic,
    smallest_detectable_accuracy_difference,
    smallest_significant_count,
    specificity_at_sensitivity,
    specificity_at_sensitivity_statistic,
)
from experiments.statistics_ordinal import (
    confusion_matrix,
    kappa_statistic,
    macro_f1_statistic,
    mean_auc_statistic,
    stage_error_statistic,
)
from experiments.statistics_paired import (
    NonInferiority,
    PairedRanks,
    non_inferiority,
    square_and_add_interval,
    wilcoxon_test,
)
from experiments.statistics_proportions import (
    Interval,
    McNemar,
    clopper_pearson_interval,
    holm,
    mcnemar_test,
    wilson_interval,
)
from experiments.statistics_roc import (
    DeLong,
    auc,
    auc_interval,
    delong_covariance,
    delong_interval,
    delong_test,
    hanley_mcneil_variance,
    newcombe_interval,
    smallest_detectable_auc_difference,
)

__all__ = [
    "BrierParts",
    "Calibration",
    "DeLong",
    "Interval",
    "McNemar",
    "NonInferiority",
    "PairedRanks",
    "auc",
    "auc_interval",
    "auc_statistic",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_score",
    "calibration_line",
    "clopper_pearson_interval",
    "confusion_matrix",
    "delong_covariance",
    "delong_interval",
    "delong_test",
    "hanley_mcneil_variance",
    "holm",
    "interval_of",
    "kappa_statistic",
    "macro_f1_statistic",
    "mcnemar_test",
    "mean_auc_statistic",
    "mean_statistic",
    "net_benefit",
    "newcombe_interval",
    "non_inferiority",
    "patient_weights",
    "reliability_curve",
    "sensitivity_at_specificity",
    "sensitivity_at_specificity_statistic",
    "smallest_detectable_accuracy_difference",
    "smallest_detectable_auc_difference",
    "smallest_significant_count",
    "specificity_at_sensitivity",
    "specificity_at_sensitivity_statistic",
    "square_and_add_interval",
    "stage_error_statistic",
    "two_sided_p",
    "wilcoxon_test",
    "wilson_interval",
]
