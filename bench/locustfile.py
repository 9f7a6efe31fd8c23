"""Users for locust: what people do to a Tickwheel, in growing numbers, up to the knee.

    locust -f bench/locustfile.py --host http://localhost:8080 --web-host 127.0.0.1

then http://127.0.0.1:8089, or `--headless`. `make locust HOST=http://… KEY=tw_…` runs

    TICKWHEEL_API_KEY=$(KEY) locust -f bench/locustfile.py --host $(HOST) --web-host 127.0.0.1

A key (`--key`, or TICKWHEEL_API_KEY) needs the scopes `submit`, `read` and `manage`. The jobs are
real: they wait in the queue until a worker takes them, so point `--queue` and `--task` at one that
does nothing, such as `tickwheel worker tickwheel.bench.noop:worker --url http://…`.

There are four kinds of users, mixed by `--weight-…`; each begins `--pace` tasks a second, as long
as the answers come fast enough. The first step has as many users as the weights add up to, each
later one twice as many, so the mix stays the same. It ends when two steps have not brought a tenth
more of accepted requests, when their 95th percentile has passed `--p95-max`, when over a hundredth
has failed, or at a limit. Then the *knee* is told: the first step near the best one.

A refusal (429, 503) is no failure, but no success either: it has a row of its own in the tables,
doesn't count for the knee, and its user waits as long as it was told. Everything else but the
status that was expected is a failure.

One locust is one core; `--processes 2` starts two, and steps shorter than ten seconds are too short
then, since each tells what it has counted every three.

What is measured are requests: in a closed loop, by a generator that costs more than what it
measures. Whether jobs are on time is not to be seen from here.
"""

from __future__ import annotations

import itertools
import json
import random
import time
import uuid
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final

from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task

from tickwheel.bench.knee import Bounds, Climb, Tally

ONE: Final = "POST /v1/jobs, one"
BATCH: Final = "POST /v1/jobs, batch"
TRIGGER: Final = "POST /v1/schedules/{id}/trigger"
REFUSALS: Final = (429, 503)
RETRY_AFTER_SECONDS_MAX: Final = 5.0
DELETES_MAX: Final = 3
"""So often a refused DELETE is repeated: a schedule that stays would fire for ever."""

numbers = itertools.count(random.getrandbits(52))
"""Each job carries one, to be recognised by; those of several processes hardly meet."""
recent: deque[str] = deque(maxlen=1_000)
"""Ids of jobs that were submitted lately, by any user of this process."""
taken: list[str] = []
"""Ids of all jobs that were acknowledged, if there is a file to write them to."""


class Person(FastHttpUser):
    """What all users have in common."""

    abstract = True
    weight = 1
    network_timeout = 35.0

    def __init__(self, environment: Any) -> None:
        """Take the settings of the command line."""
        self.options = environment.parsed_options
        if self.options.key:
            self.default_headers = {"Authorization": f"Bearer {self.options.key}"}
        self._paced = constant_throughput(self.options.pace)
        super().__init__(environment)

    def wait_time(self) -> float:
        """Return how long to wait for the next task's turn."""
        return float(self._paced(self))

    def ask(self, method: str, path: str, name: str, *expected: int, body: Any = None) -> Any:
        """Return the answer's JSON, or None if it was refused or has failed."""
        pause = 0.0
        with self.client.request(method, path, name=name, json=body, catch_response=True) as answer:
            code = answer.status_code
            if code in REFUSALS:
                answer.request_meta["name"] = f"{name}: {code}"
                answer.success()
                pause = min(float(answer.headers.get("retry-after", 1)), RETRY_AFTER_SECONDS_MAX)
            elif code and code not in expected:
                answer.failure(f"{code} {_problem(answer)} instead of {expected[0]}")
            elif code:
                answer.success()
                return answer.json() if answer.content else {}
        time.sleep(pause)  # gevent's, here
        return None

    def job(self) -> dict[str, Any]:
        """Return a submission."""
        return {
            "task": self.options.task,
            "queue": self.options.queue,
            "args": {"due": int(time.time() * 1e6), "n": next(numbers), "pad": "x" * 28},
        }

    def submit_one(self) -> None:
        """Submit one job, and remember it."""
        made = self.ask("POST", "/v1/jobs", ONE, 201, body=self.job())
        if made is not None:
            recent.append(made["id"])
            self.take(made)

    def take(self, *jobs: dict[str, Any]) -> None:
        """Keep the ids of jobs that were acknowledged."""
        if self.options.knee_file:
            taken.extend(job["id"] for job in jobs)


class Single(Person):
    """Submits jobs one by one."""

    weight = 3

    @task
    def submit(self) -> None:
        """Submit one."""
        self.submit_one()


class Batch(Person):
    """Submits jobs in batches."""

    @task
    def submit(self) -> None:
        """Submit as many as a batch has."""
        jobs = [self.job() for _ in range(self.options.batch)]
        made = self.ask("POST", "/v1/jobs", BATCH, 201, body={"jobs": jobs})
        if made is not None:
            recent.append(made["jobs"][0]["id"])
            self.take(*made["jobs"])


class Status(Person):
    """Looks what has become of jobs."""

    weight = 2

    @task(8)
    def get(self) -> None:
        """Look at one job."""
        if recent:
            self.ask("GET", f"/v1/jobs/{random.choice(recent)}", "GET /v1/jobs/{id}", 200)
        else:
            self.submit_one()

    @task(1)
    def list(self) -> None:
        """Look at a page of the queue's jobs."""
        path = f"/v1/jobs?queue={self.options.queue}&limit=20"
        self.ask("GET", path, "GET /v1/jobs", 200)

    @task(1)
    def stats(self) -> None:
        """Look at the queue."""
        if recent:
            path = f"/v1/queues/{self.options.queue}/stats"
            self.ask("GET", path, "GET /v1/queues/{name}/stats", 200)


class Schedules(Person):
    """Makes a schedule of its own, looks at it, fires it, takes it away."""

    path = ""

    @task
    def manage(self) -> None:
        """Go through a schedule's life."""
        self.path = f"/v1/schedules/locust-{uuid.uuid4()}"
        schedule = {"cron": "0 9 * * mon-fri", "timezone": "Europe/Berlin", "job": self.job()}
        if self.ask("PUT", self.path, "PUT /v1/schedules/{id}", 201, body=schedule) is not None:
            self.ask("GET", self.path, "GET /v1/schedules/{id}", 200)
            made = self.ask("POST", f"{self.path}/trigger", TRIGGER, 201)
            if made is not None:
                self.take(made)
            for _ in range(DELETES_MAX):
                if self.ask("DELETE", self.path, "DELETE /v1/schedules/{id}", 204) is not None:
                    break
        self.path = ""

    def on_stop(self) -> None:
        """Leave nothing behind. Who is stopped during the PUT doesn't know if there is anything."""
        if self.path:
            self.ask("DELETE", self.path, "DELETE /v1/schedules/{id}", 204, 404)


KINDS: tuple[type[Person], ...] = (Single, Batch, Status, Schedules)


class Stairs(LoadTestShape):
    """Twice as many users with each step, up to the knee."""

    climb: Climb | None = None

    def reset_time(self) -> None:
        """Begin anew: called when a test is started."""
        self.climb = None

    def tick(self) -> tuple[int, float] | None:
        """Return how many users there shall be now; None at the end. Called every second."""
        assert self.runner is not None
        now = time.monotonic()
        if self.climb is None:
            options: Any = self.runner.environment.parsed_options
            bounds = Bounds(
                options.p95_max, options.step_seconds, options.seconds_max, options.users_max
            )
            users = sum(int(kind.weight) for kind in self.runner.environment.user_classes)
            self.began = now
            self.climb = Climb(bounds, users)
        if self.climb.tick(now - self.began, self.tally()):
            return self.climb.users, float(self.climb.users)
        print(f"stopped: {self.climb.stopped}; the knee: {self.climb.knee()}")
        return None

    def tally(self) -> Tally:
        """Return what locust has counted since the start."""
        assert self.runner is not None
        options: Any = self.runner.environment.parsed_options
        accepted = failed = jobs = 0
        times: Counter[int] = Counter()
        for (name, _), entry in self.runner.stats.entries.items():
            if not name.endswith(tuple(map(str, REFUSALS))):
                good = entry.num_requests - entry.num_failures
                accepted += good
                failed += entry.num_failures
                jobs += good * {ONE: 1, BATCH: options.batch, TRIGGER: 1}.get(name, 0)
                times.update(entry.response_times)
        return Tally(accepted, failed, jobs, times)


def _problem(answer: Any) -> str:
    """Return the code of a problem, which is the same for all of its kind."""
    try:
        return str(answer.json()["code"])
    except (ValueError, TypeError, KeyError):
        return "without a code"


def _add_arguments(parser: Any, **_: Any) -> None:
    def add(name: str, default: Any, help: str, hidden: bool = False, **more: Any) -> None:
        more["include_in_web_ui"] = not hidden
        parser.add_argument(name, type=type(default), default=default, help=help, **more)

    add("--key", "", "API key, if one is needed", hidden=True, env_var="TICKWHEEL_API_KEY")
    add("--queue", "bench", "Queue of the jobs")
    add("--task", "noop", "Task of the jobs")
    add("--batch", 100, "Jobs of a batch")
    add("--pace", 10.0, "Tasks that each user begins in a second, at most")
    for kind in KINDS:
        name = kind.__name__.lower()
        add(f"--weight-{name}", int(kind.weight), f"Users of the kind {name}", hidden=True)
    add("--step-seconds", 10.0, "Length of a step")
    add("--seconds-max", 600.0, "Length of all steps, at most")
    add("--users-max", 2_000, "Users, at most")
    add("--p95-max", 500.0, "Where the 95th percentile is too long, in ms")
    add("--knee-file", "", "Where to write steps and ids of jobs, as JSON", hidden=True)


def _weigh(environment: Any, **_: Any) -> None:
    """Give the kinds their weights; those without one are not used."""
    for kind in KINDS:
        kind.weight = getattr(environment.parsed_options, f"weight_{kind.__name__.lower()}")
    environment.user_classes[:] = [kind for kind in environment.user_classes if kind.weight > 0]
    if not environment.user_classes:
        raise SystemExit("all weights are 0")


def _write_knee(environment: Any, **_: Any) -> None:
    shape, path = environment.shape_class, environment.parsed_options.knee_file
    if path and isinstance(shape, Stairs) and shape.climb is not None:
        errors = {error.to_name(): error.occurrences for error in environment.stats.errors.values()}
        found = {"jobs": shape.tally().jobs, "ids": taken, "errors": errors}
        Path(path).write_text(json.dumps(shape.climb.report() | found))


def _listen(to: Any) -> None:
    to.init_command_line_parser.add_listener(_add_arguments)
    to.init.add_listener(_weigh)
    to.quitting.add_listener(_write_knee)


_listen(events)
