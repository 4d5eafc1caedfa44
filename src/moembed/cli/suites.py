"""What `moembed evaluate --suite … --against …` shows of two suites."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moembed.compare.formatting import difference, estimate, kind_name, listing
from moembed.console import print_table, say

if TYPE_CHECKING:
    from moembed.evaluation.domain import DomainComparison, Stratified
    from moembed.runs.suites import SuiteOptions


def suite_options(measures: str | None, parser: str | None, error_of: str | None) -> SuiteOptions:
    """The options that were given; where nothing names measures, those that need nothing."""
    from moembed.runs.suites import SuiteOptions

    chosen = SuiteOptions().measures
    if measures is not None:
        chosen = tuple(part.strip() for part in measures.split(",") if part.strip())
    return SuiteOptions(chosen, parser, error_of)


def show_suites(found: DomainComparison) -> None:
    """The drops, the rank correlation, and the drops within the parts of every measure."""
    if found.left_out:
        say(f"note: {listing(found.left_out)}: of a kind that the other suite has not, and not compared")
    rows = [
        [name, estimate(drop.domain), estimate(drop.general), difference(drop.drop)]
        for name, drop in found.drops.items()
    ]
    kinds = listing([kind_name(kind) for kind in found.kinds])
    print_table(f"\n{found.domain} against {found.general}: {kinds}",
                ["", found.domain, found.general, "drop"], rows)  # fmt: skip
    if found.rank:
        told = f"Spearman {estimate(found.rank)} over {len(found.drops)} systems"
        print(f"rank correlation of the systems between the suites: {told}; the interval is over items")
    else:
        print("rank correlation of the systems between the suites: three systems or more would tell")
    for measure, strata in found.strata.items():
        _show_strata(measure, strata, found)


def _show_strata(measure: str, strata: Stratified, found: DomainComparison) -> None:
    systems = [name for name in found.drops if any(name in part.drops for part in strata.parts)]
    rows = [
        [
            f"{part.low:.2f} to {part.high:.2f}",
            f"{part.domain_items:,} and {part.general_items:,}",
            *(difference(part.drops[name]) if name in part.drops else "" for name in systems),
        ]
        for part in strata.parts
    ]
    matched = [difference(strata.matched[name]) for name in systems]
    rows.append(["alike", f"{strata.covered:.0%} of {found.domain}", *matched])
    means = f"mean {strata.domain_mean:.2f} and {strata.general_mean:.2f}"
    print_table(f"\ndrop by {measure}, {means}", [measure, "items", *systems], rows)
