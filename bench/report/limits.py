"""What limits each target, found with profilers and written by hand: the last column of its table.

The keys are the names of the targets. A target without a text has an empty cell.
"""

from __future__ import annotations

LIMITS: dict[str, str] = {
    "end to end, batch": "the scheduler's one thread, 60 to 80 % busy beside a second core that "
    "Postgres, the workers and the load share: each waits for the other now and then",
    "end to end, one job per POST": "the scheduler's one core: a packet in and one out for each "
    "job, and commits of some 20 to 50 jobs where hundreds would be cheaper",
    "CPU per job at full speed, scheduler": "Python's interpreter: the profile is flat, no "
    "function over 7 %",
    "CPU per job at full speed, all": "half of it is the scheduler's; Postgres has a third or more: two row "
    "versions, one index entry, 0.46 KB of WAL a job",
    "CPU per job at 10,000/s uniform, all": "small batches: 20 to 30 commits per 1,000 "
    "jobs, and a claim for each job",
    "fire lag with 10 M waiting, p50": "the rest of 2 ms after an answer, the claim's commit "
    "before it, and the way to the worker",
    "fire lag with 10 M waiting, p99": "turns of the loop that load, settle or take large "
    "submissions, and the machine giving the core to others",
    "fire lag with 10 M waiting, p99.9": "the same",
    "fire lag with 10 M waiting, max": "the same",
    "100,000 due at one instant, drained": "the claims: one UPDATE per 2,000 jobs, two at a time",
    "restart to first fire, 10 M waiting": "starting Python and its imports, connecting, taking "
    "the shards, the first load",
    "memory, 10 M waiting, 500 k in the wheel": "about 390 bytes for each job in memory",
    "WAL per job, due within the hour": "three row versions: written, claimed, settled",
    "loop stall, p99.9": "a flush of up to 2,000 rows is made in one piece",
}
