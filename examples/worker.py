"""A remote worker: `tickwheel worker examples.worker:worker --url http://localhost:8080`."""

from __future__ import annotations

import asyncio
from typing import Any

from tickwheel.client import Context, Worker

worker = Worker(queues={"default": 50})


@worker.task("send_email")
async def send_email(ctx: Context, user_id: int) -> dict[str, Any]:
    await asyncio.sleep(0.01)  # here would be the call to the mail server
    return {"sent_to": user_id, "attempt": ctx.attempt}


if __name__ == "__main__":
    worker.run()
