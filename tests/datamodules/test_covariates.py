"""Covariates as numbers: what counts as unknown, what is refused, and whose mean is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodules.cohort import Cohort
from datamodules.covariates import covariate_table, examination_values, statistics
from datamodules.errors import InputError


def cohort(**columns: list[Any]) -> Cohort:
    count = len(next(iter(columns.values())))
    frame = pd.DataFrame(
        {
            "scan_id": [f"s{number}" for number in range(count)],
            "patient_id": [f"p{number}" for number in range(count)],
            "sequence": "T2W",
            "image": "x.nii.gz",
            "source": "a",
            **columns,
        }
    )
    return Cohort(frame, Path("/nowhere"), "table.csv")


def test_values_as_measured_and_nan_where_unknown() -> None:
    table = cohort(age=["61", "", "40.5"], sex=["M", "F", ""], x_alt=["1e2", " ", "33"])
    found = covariate_table(table, ("x_alt", "age", "sex"))
    np.testing.assert_array_equal(found["s0"], [100, 61, 1])
    np.testing.assert_array_equal(found["s1"], [np.nan, np.nan, 0])
    np.testing.assert_array_equal(found["s2"], [33, 40.5, np.nan])
    assert all(len(values) == 0 for values in covariate_table(table, ()).values())


def test_what_is_no_covariate_is_refused() -> None:
    table = cohort(x_alt=["5", "high", "inf"], x_name=["a", "b", "c"])
    with pytest.raises(InputError, match=r"'stage' is no covariate of table.csv; it has age, sex, x_alt, x_name"):
        covariate_table(table, ("stage",))
    with pytest.raises(InputError, match="'age' is there twice"):
        covariate_table(table, ("age", "age"))
    with pytest.raises(InputError) as caught:
        covariate_table(table, ("x_alt",))
    assert [fault.split(";")[0] for fault in caught.value.faults] == [
        "table.csv: row 2: x_alt 'high' is not a number",
        "table.csv: row 3: x_alt 'inf' is not a number",
    ]


def test_scans_of_one_examination_complete_each_other_and_must_agree() -> None:
    table = covariate_table(cohort(age=["61", "", "62"]), ("age",))
    assert examination_values(table, ["s0", "s1"], ("age",), "t").tolist() == [61]
    assert np.isnan(examination_values(table, ["s1"], ("age",), "t")).all()
    with pytest.raises(InputError, match="t: age differs within one examination: s0 has 61, s2 has 62"):
        examination_values(table, ["s0", "s2"], ("age",), "t")


def test_statistics_are_those_of_the_known_values() -> None:
    values = np.array([[1.0, 5.0], [3.0, np.nan], [np.nan, 9.0]])
    mean, spread = statistics(values, ("x_a", "age"), "t")
    np.testing.assert_allclose(mean, [2, 7])
    np.testing.assert_allclose(spread, [1, 2])
    with pytest.raises(InputError) as caught:
        statistics(np.array([[np.nan, 4.0], [np.nan, 4.0]]), ("x_a", "age"), "t")
    assert "no training patient has x_a" in caught.value.faults[0]
    assert "age is 4 in all training patients" in caught.value.faults[1]
