"""Lines of the paper's evidence."""

import dataclasses

from flowmend.paper.plan import ENTRIES, Job


def job(name="eq7", task="denoise", images=5, **changes):
    weight = ENTRIES[name].grid[0] if ENTRIES[name].grid else None
    found = Job.of("table1", ENTRIES[name], task, images, weight=weight, **changes)
    return dataclasses.replace(found, steps=min(found.steps, 3))
