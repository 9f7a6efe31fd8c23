"""The HTTP face of a scheduler: the API, the worker protocol, keys, metrics, and the process.

`tickwheel.server.app.build_app` makes an aiohttp application over a `Scheduler` of yours;
`tickwheel.server.serve` is the whole server, as `tickwheel serve` runs it.
"""
