"""One run at a fixed rate, printed: what a change to the product is looked at with."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tickwheel.bench.bodies import Plan
from tickwheel.bench.house import house
from tickwheel.bench.machine import commit
from tickwheel.bench.phase import Measurement, Note
from tickwheel.bench.record import Run
from tickwheel.bench.report.tables import number
from tickwheel.bench.shapes.open_loop import judged, plan_of
from tickwheel.bench.trial import Trial


@dataclass(frozen=True, slots=True)
class Offer:
    """What is offered: `rate` jobs a second for `seconds`, due `lead` seconds after submission."""

    rate: float
    seconds: float
    batch: int
    single: bool
    workers: int
    slots: int
    lead: float
    schedulers: int = 1

    def plan(self) -> Plan:
        """Return it as the generator takes it."""
        plan = plan_of(self.rate, self.seconds, self.batch, self.single)
        if self.lead:
            plan = replace(plan, due="spread", lead_ms=round(self.lead * 1000))
        return plan

    async def __call__(self, note: Note) -> Measurement:
        """Run it, as a phase is run."""
        plan = self.plan()
        async with house(
            workers=self.workers, slots=self.slots, schedulers=self.schedulers
        ) as running:
            return judged(await Trial(running, plan, note).run(), plan)


def show(offer: Offer, run: Run, as_json: bool) -> None:
    """Print the run's figures and checks as a table, or as one JSON object."""
    if as_json:
        checks = {check.name: check.ok for check in run.checks}
        told = {"settings": run.settings, "figures": run.figures, "checks": checks}
        print(json.dumps({"commit": commit(), **told}))
        return
    table = Table(title=f"{offer.rate:,.0f} jobs/s for {offer.seconds:g} s")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in run.figures.items():
        table.add_row(name, number(value) if isinstance(value, int | float) else str(value))
    for check in run.checks:
        table.add_row(check.name, "ok" if check.ok else escape(check.detail))
    Console().print(table)
