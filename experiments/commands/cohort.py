"""``hepastage cohort …``: make the cohort table from a data set's folder, and check it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError
from experiments.commands import cohort_check

if TYPE_CHECKING:
    from datamodules.cohort import Cohort
    from datamodules.phantom import PhantomStrength

Subparsers = argparse._SubParsersAction  # the only name that argparse gives this type
DIRECTORY_NOTE = "Images stay where they are: the table refers to them."
DICOM_NOTE = "Each DICOM series is converted once to NIfTI, into a folder beside the table."


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``cohort`` and its readers to the front door's parser."""
    parser = subparsers.add_parser(
        "cohort", help="make or check the cohort table: one row per scan", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="cohort_command", metavar="LAYOUT", required=True)
    _register_phantom(commands)
    _register_nifti(commands)
    _register_public(commands)
    _register_dicom(commands)
    _register_join(commands)
    _register_semisynthetic(commands)
    cohort_check.register(commands)


def _register_phantom(commands: Subparsers[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("phantom", help="digital liver phantoms with a known truth", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; holds cohort.parquet")
    parser.add_argument("--patients", type=_positive, required=True, metavar="N", help="how many patients")
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="same seed, same bytes")
    parser.add_argument(
        "--shortcut",
        action="store_true",
        help="plant a sign outside the liver that gives away the label in training only",
    )
    parser.add_argument(
        "--shortcut-in-test",
        action="store_true",
        help="with --shortcut: the sign goes with the label in the test set too",
    )
    parser.add_argument(
        "--strength",
        action="append",
        default=[],
        metavar="SIGN=X",
        help="how strongly severity shows in texture, nodularity, caudate, right_lobe, spleen, ascites; 0 switches off",
    )
    parser.add_argument(
        "--sequence", action="append", choices=("T2W", "T1W"), help="what is acquired; may be repeated (default: both)"
    )
    parser.add_argument(
        "--detail", type=float, default=1.0, help="in-plane resolution from 0.5 to 3 (default 1: quick)"
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.4, help="share of official test patients (default 0.4)"
    )
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
    parser.set_defaults(run=_phantom)


def _register_nifti(commands: Subparsers[argparse.ArgumentParser]) -> None:
    parser = _reader(
        commands,
        "nifti",
        "any folder of NIfTI images and masks, by file-name patterns",
        _nifti,
        epilog="Patterns may include sub-folders. Fields: {id} {patient} {sequence} {visit} {source}, each a part of "
        "one file or folder name; {id:[0-9]+} restricts a field; * is anything within a name.",
    )
    parser.add_argument("--image", required=True, metavar="PATTERN", help="images, such as 'image_{id}.nii.gz'")
    parser.add_argument("--mask", metavar="PATTERN", help="reference masks, such as 'label_{id}.nii.gz'")
    parser.add_argument(
        "--mask-label", type=_labels, default=(1,), metavar="N[,N]", help="mask values that are liver (default 1)"
    )
    parser.add_argument(
        "--sequence", default="{sequence}", metavar="NAME", help="T1W, T2W, …; left out where --image holds {sequence}"
    )
    parser.add_argument(
        "--source",
        default="{source}",
        metavar="NAME",
        help="cohort, site or vendor; left out where --image holds {source}",
    )
    parser.add_argument("--patient", metavar="PATTERN", help="finds {patient} in the {id}, such as '{patient}-*'")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="measured targets by patient_id or scan_id")


def _register_public(commands: Subparsers[argparse.ArgumentParser]) -> None:
    _reader(
        commands, "cirrmri", "CirrMRI600+: cirrhosis T1 and T2 volumes, healthy subjects, metadata", _plain("cirrmri")
    )
    slices = _reader(
        commands,
        "cirrmri-slices",
        "CirrMRI600+: PNG slices of Cirrhosis_T2_2D, stacked; for protocols that split and score slices",
        _converted("cirrmri_slices", "size", "paired"),
        epilog="Volumes are written into a folder beside --out. They have no real spacing.",
    )
    slices.add_argument("--size", type=int, default=256, metavar="N", help="edge in pixels (256); 0 keeps the slices'")
    slices.add_argument("--paired", action="store_true", help="only patients of the CSV of paired examinations")
    _reader(commands, "care-liver", "CARE-Liver / LiFS: LiQA training data, fibrosis S1–S4", _plain("care_liver"))
    _reader(commands, "amos", "AMOS22: its MRI part", _plain("amos"))
    _reader(commands, "atlas", "ATLAS: contrast-enhanced T1, liver and tumour merged", _plain("atlas"))
    nnunet = _reader(commands, "nnunet", "nnU-Net raw data set: imagesTr, labelsTr, dataset.json", _nnunet)
    nnunet.add_argument(
        "--mask-label", type=_labels, metavar="N[,N]", help="values that are liver (default: 'liver' of dataset.json)"
    )
    nnunet.add_argument(
        "--sequence", action="append", metavar="[CHANNEL=]NAME", help="sequence of a channel (default: channel_names)"
    )
    nnunet.add_argument("--source", metavar="NAME", help="default: the data set's name")
    nnunet.add_argument(
        "--patient-pattern", metavar="PATTERN", help="finds {patient} in the case, such as '{patient}-*'"
    )


def _register_dicom(commands: Subparsers[argparse.ArgumentParser]) -> None:
    _reader(commands, "chaos", "CHAOS: MR part, DICOM with PNG truth", _converted("chaos"), epilog=DICOM_NOTE)
    duke = _reader(
        commands, "duke", "Duke DLDS: DICOM images and masks", _converted("duke", "sequence"), epilog=DICOM_NOTE
    )
    duke.add_argument("--sequence", metavar="NAME", help="sequence of every series (default: key tables and headers)")
    options = ("source", "sequence", "select", "exclude", "orientation", "min_slices")
    dicom = _reader(commands, "dicom", "folders of DICOM series", _converted("dicom", *options), epilog=DICOM_NOTE)
    dicom.add_argument("--source", metavar="NAME", help="cohort, site or vendor (default: ROOT's name, with a note)")
    dicom.add_argument("--sequence", metavar="NAME", help="sequence of every series (default: rules on each header)")
    dicom.add_argument("--select", metavar="REGEX", help="only series whose description matches")
    dicom.add_argument("--exclude", metavar="REGEX", help="no series whose PatientID/number/description matches")
    dicom.add_argument("--orientation", choices=("axial", "coronal", "sagittal"), help="only volumes of this plane")
    dicom.add_argument("--min-slices", type=_positive, default=3, metavar="N", help="fewer make no volume (default 3)")
    _reader(
        commands,
        "csv",
        "a CSV of the cohort table's columns, paths relative to it; images are NIfTI or folders of one DICOM series",
        _converted("csv"),
    )


def _register_join(commands: Subparsers[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("join", help="several cohort tables as one", allow_abbrev=False)
    parser.add_argument("cohorts", type=Path, nargs="+", metavar="COHORT", help="tables made before")
    parser.add_argument("--out", type=Path, required=True, metavar="COHORT", help="table to write, .parquet or .csv")
    parser.add_argument(
        "--shared-patients",
        action="store_true",
        help="a patient id in two tables is the same person (default: refused)",
    )
    parser.set_defaults(run=_join)


def _register_semisynthetic(commands: Subparsers[argparse.ArgumentParser]) -> None:
    about = "real scans with masks, and the phantom's fibrosis texture in half of the livers: SEMI-SYNTHETIC"
    parser = commands.add_parser("semisynthetic", help=about, description=about, allow_abbrev=False)
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="table of real scans with reference masks")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; holds cohort.parquet")
    parser.add_argument(
        "--strength", type=float, required=True, metavar="X", help="signal difference of septum and nodule; 0 for none"
    )
    parser.add_argument(
        "--copies", type=_positive, default=8, metavar="N", help="derived patients of each real one, even (default 8)"
    )
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="same seed, same voxels")
    parser.set_defaults(run=_semisynthetic)


def _reader(
    commands: Subparsers[argparse.ArgumentParser],
    name: str,
    about: str,
    read: Callable[[argparse.Namespace], Cohort],
    epilog: str = DIRECTORY_NOTE,
) -> argparse.ArgumentParser:
    """The parser of one layout: ROOT and --out, and the handler that reads and saves."""
    parser = commands.add_parser(name, help=about, description=about, epilog=epilog, allow_abbrev=False)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the data set's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="COHORT", help="table to write, .parquet or .csv")

    def run(args: argparse.Namespace) -> int:
        _check_out(args.out)
        cohort = read(args)
        cohort.save(args.out)
        _say_summary(cohort, args.out)
        return 0

    parser.set_defaults(run=run)
    return parser


def _phantom(args: argparse.Namespace) -> int:
    from datamodules.phantom import make_phantom

    if args.shortcut_in_test and not args.shortcut:
        raise InputError("--shortcut-in-test: there is no shortcut without --shortcut; give both")
    cohort = make_phantom(
        args.out,
        patients=args.patients,
        seed=args.seed,
        shortcut=args.shortcut,
        shortcut_in_test=args.shortcut_in_test,
        strength=_strength(args.strength),
        sequences=args.sequence or ("T2W", "T1W"),
        detail=args.detail,
        test_fraction=args.test_fraction,
        workers=args.workers,
    )
    _say_summary(cohort, args.out / "cohort.parquet")
    return 0


def _semisynthetic(args: argparse.Namespace) -> int:
    from datamodules.cohort import Cohort
    from datamodules.semisynthetic import Texture, make_semisynthetic

    texture = Texture(args.strength, args.copies, args.seed)
    cohort = make_semisynthetic(Cohort.load(args.cohort), args.out, texture, notify=_notice)
    _say_summary(cohort, args.out / "cohort.parquet")
    return 0


def _strength(words: list[str]) -> PhantomStrength:
    """The strengths of ``SIGN=X`` words over the default ones."""
    import dataclasses

    from datamodules.phantom import PhantomStrength

    known = [field.name for field in dataclasses.fields(PhantomStrength)]
    values: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            name = ""
        if name not in known:
            raise InputError(f"--strength {word}: write SIGN=X, SIGN one of {', '.join(known)}, X a number from 0")
    return dataclasses.replace(PhantomStrength(), **values)


def _join(args: argparse.Namespace) -> int:
    _check_out(args.out)
    from datamodules.cohort import Cohort
    from datamodules.readers.join import join

    cohort = join([Cohort.load(path) for path in args.cohorts], shared_patients=args.shared_patients)
    cohort.save(args.out)
    _say_summary(cohort, args.out)
    return 0


def _nifti(args: argparse.Namespace) -> Cohort:
    from datamodules.readers import nifti

    return nifti.read(
        args.root,
        args.image,
        mask=args.mask,
        mask_labels=args.mask_label,
        sequence=args.sequence,
        source=args.source,
        patient=args.patient,
        labels=args.labels,
        notify=_notice,
    )


def _nnunet(args: argparse.Namespace) -> Cohort:
    from datamodules.readers import nnunet

    return nnunet.read(
        args.root,
        mask_labels=args.mask_label,
        sequences=args.sequence,
        source=args.source,
        patient=args.patient_pattern,
        notify=_notice,
    )


def _plain(module: str) -> Callable[[argparse.Namespace], Cohort]:
    """A handler that calls ``datamodules.readers.<module>.read(root, notify=…)``."""

    def read(args: argparse.Namespace) -> Cohort:
        reader = importlib.import_module(f"datamodules.readers.{module}")
        cohort: Cohort = reader.read(args.root, notify=_notice)
        return cohort

    return read


def _converted(module: str, *options: str) -> Callable[[argparse.Namespace], Cohort]:
    """A handler that calls ``datamodules.readers.<module>.read(root, <out stem>_nifti/, …)``."""

    def read(args: argparse.Namespace) -> Cohort:
        reader = importlib.import_module(f"datamodules.readers.{module}")
        folder = args.out.absolute().with_name(f"{args.out.stem}_nifti")
        if "source" in options and not args.source:
            args.source = args.root.absolute().name
            _notice(f"every scan's source is {args.source!r}, the folder's name; give --source NAME for another")
        cohort: Cohort = reader.read(
            args.root, folder, notify=_notice, **{name: getattr(args, name) for name in options}
        )
        return cohort

    return read


def _check_out(out: Path) -> None:
    """Refuse a bad --out before the work and not after it."""
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: a cohort table ends in .parquet or .csv; rename it")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name the table in it")


def _notice(text: str) -> None:
    sys.stderr.write(f"note: {' '.join(text.split())}\n")


def _say_summary(cohort: Cohort, out: Path) -> None:
    frame = cohort.frame

    def counts(column: str) -> str:
        return ", ".join(f"{name} {count}" for name, count in frame[column].value_counts(sort=False).items())

    sys.stdout.write(
        f"{out}: {len(cohort)} scans of {len(cohort.patients)} patients; sequences: {counts('sequence')}; "
        f"sources: {counts('source')}; {int(frame['mask'].notna().sum())} with a mask\n"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _labels(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive whole numbers such as 1 or 1,2")
    return tuple(int(part) for part in parts)
