"""The pandera schema of the cohort table, and its failures in plain words."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pandera.pandas as pa

UNSAFE = r"[/\\\x00-\x1f]"

SCHEMA = pa.DataFrameSchema(
    {
        "scan_id": pa.Column(
            "string",
            [
                pa.Check(
                    lambda s: ~s.str.contains(UNSAFE) & ~s.isin([".", ".."]), error="has a slash or control character"
                )
            ],
        ),
        "patient_id": pa.Column("string"),
        "sequence": pa.Column("string"),
        "image": pa.Column("string"),
        "mask": pa.Column("string", nullable=True),
        "mask_labels": pa.Column(
            "string",
            [
                pa.Check(
                    lambda s: s.str.fullmatch(r"[1-9]\d*(,[1-9]\d*)*"),
                    error="is not a list of positive whole numbers such as 1 or 1,2",
                )
            ],
            nullable=True,
        ),
        "source": pa.Column("string"),
        "visit": pa.Column("string", nullable=True),
        "stage": pa.Column(
            "Int64", [pa.Check.isin([1, 2, 3], error="is not a radiological stage 1, 2 or 3")], nullable=True
        ),
        "lsm_kpa": pa.Column(
            "Float64",
            [pa.Check.in_range(0.5, 100.0, error="is not a liver stiffness between 0.5 and 100 kPa")],
            nullable=True,
        ),
        "metavir": pa.Column(
            "Int64", [pa.Check.isin([0, 1, 2, 3, 4], error="is not a METAVIR stage 0 to 4")], nullable=True
        ),
        "healthy": pa.Column("boolean", nullable=True),
        "age": pa.Column(
            "Float64", [pa.Check.in_range(0.0, 120.0, error="is not an age between 0 and 120 years")], nullable=True
        ),
        "sex": pa.Column("string", [pa.Check.isin(["F", "M"], error="is not F or M")], nullable=True),
        "official_split": pa.Column(
            "string", [pa.Check.isin(["train", "valid", "test"], error="is not train, valid or test")], nullable=True
        ),
        "origin": pa.Column("string", nullable=True),
        "quality": pa.Column(
            "Int64", [pa.Check.isin([1, 2, 3], error="is not a quality band 1 (poor), 2 or 3 (good)")], nullable=True
        ),
    }
)


def schema_faults(table: pd.DataFrame, name: str, absent: Sequence[str] = ()) -> list[str]:
    """Every way in which a typed table breaks the schema, one line each.

    Args:
        table: The table with all columns of ``COLUMNS`` in their nullable types.
        name: What the lines call the table.
        absent: Required columns that the table never had: their empty cells are not reported.

    Returns:
        Lines that name column and row (counted from 1); empty for a valid table.
    """
    faults: list[str] = []
    try:
        SCHEMA.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        for _, case in error.failure_cases.iterrows():
            row = "" if pd.isna(case["index"]) else f" row {int(case['index']) + 1}:"
            if case["column"] in absent:
                continue
            if str(case["check"]) == "not_nullable":
                faults.append(f"{name}:{row} {case['column']} is empty; every scan needs one")
            else:
                faults.append(f"{name}:{row} {case['column']} {case['failure_case']!r} {case['check']}; correct it")
    for scan_id, rows in table.groupby("scan_id", sort=True).groups.items():
        if len(rows) > 1:
            where = ", ".join(str(row + 1) for row in rows)
            faults.append(
                f"{name}: rows {where}: scan_id {scan_id!r} occurs {len(rows)} times; give each scan its own id"
            )
    pairs = table[["patient_id", "origin"]].drop_duplicates()
    faults += [
        f"{name}: patient {patient!r}: scans have different origins; a patient has one, or none"
        for patient in sorted(set(pairs.loc[pairs["patient_id"].duplicated(), "patient_id"].dropna()))
    ]
    half = table.index[table["mask"].notna() & table["mask_labels"].isna()]
    faults += [
        f"{name}: row {row + 1}: a mask without mask_labels; say which of its values are liver, such as 1"
        for row in half
    ]
    return faults
